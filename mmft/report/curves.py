"""Pictures of a run: reward and what it cost over the steps, and what was said about held-out pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from mmft.report.figures import (
    BLUE,
    GREY,
    ORANGE,
    draw_smoothed,
    finish,
    new_figure,
    save_figure,
    series,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POLICY = "training"
GIVEN = "given completions, by the data"
"""Whose reward the curve shows: what the policy said, or what it was shown."""
PRICES = {
    "kl": "KL to the pretrained policy (nats per completion)",
    "regularization/distance": "distance to the pretrained weights",
}
"""What a reward may be bought with; drawn beside it where it was logged."""


def draw_curves(
    history: Sequence[Mapping[str, Any]],
    path: Path,
    held_out: tuple[float, float] | None = None,
    source: str = POLICY,
) -> None:
    """Writes the reward and its prices over optimizer steps as a PNG; where none was logged, the loss.

    Args:
        history: log lines with `step`, `reward` and perhaps some of `PRICES`.
        path: of the picture.
        held_out: mean held-out reward before and after, marked at both ends.
        source: whose reward is drawn over the steps.
    """
    panels = _panels(history)
    figure = new_figure(4.5 * (1 + len(panels)), 3.4)
    first, *others = figure.subplots(1, 1 + len(panels))
    _draw_reward(first, history, held_out, source)
    for axes, (name, title) in zip(others, panels.items(), strict=True):
        _draw_series(axes, history, name, title)
    save_figure(figure, path)


def draw_overview(
    history: Sequence[Mapping[str, Any]],
    samples: Sequence[tuple[Image | None, str, str]],
    path: Path,
    held_out: tuple[float, float] | None = None,
    source: str = POLICY,
) -> None:
    """Writes the curves beside held-out pictures with the completion before and after training.

    Args:
        history: as in `draw_curves`.
        samples: picture, completion before, completion after.
        path: of the PNG.
        held_out: as in `draw_curves`.
        source: as in `draw_curves`.
    """
    figure = new_figure(12.0, max(1.2 * len(samples), 5.0))
    halves: Any = figure.subfigures(1, 2, width_ratios=[4.4, 5.6])
    left, right = halves
    upper, lower = left.subplots(2, 1)
    _draw_reward(upper, history, held_out, source)
    name, title = next(iter(_panels(history).items()))
    _draw_series(lower, history, name, title)
    if samples:
        rows = right.subplots(len(samples), 2, width_ratios=[1.0, 4.6], squeeze=False)
        for (picture, text), (image, before, after) in zip(rows, samples, strict=True):
            picture.axis("off")
            text.axis("off")
            if image is not None:
                picture.imshow(image, interpolation="nearest" if max(image.size) < 100 else "antialiased")
            _write(text, 0.98, "before", before, GREY)
            _write(text, 0.48, "after", after, BLUE)
    save_figure(figure, path)


def _draw_reward(
    axes: Axes, history: Sequence[Mapping[str, Any]], held_out: tuple[float, float] | None, source: str
) -> None:
    steps, values = series(history, "reward")
    draw_smoothed(axes, steps, values, source)
    if held_out is not None and steps:
        axes.plot([0, steps[-1]], held_out, "o", color=ORANGE, label="held out, before and after")
    finish(axes, "reward")
    if steps:
        axes.legend(frameon=False, loc="best", fontsize=9)


def _panels(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What is drawn beside the reward: name and title."""
    logged = {name: title for name, title in PRICES.items() if series(history, name)[0]}
    return logged or {"loss": "loss"}


def _draw_series(axes: Axes, history: Sequence[Mapping[str, Any]], name: str, title: str) -> None:
    draw_smoothed(axes, *series(history, name))
    finish(axes, title)


def _write(axes: Axes, height: float, label: str, completion: str, colour: str) -> None:
    text = textwrap.shorten(completion, 150, placeholder=" ...") or "(nothing)"
    # A dollar sign would start a formula.
    lines = textwrap.fill(text.replace("$", r"\$"), 62, max_lines=2, placeholder=" ...")
    # Wide letters may reach beyond the page, and must not squeeze everything else off it.
    place: dict[str, Any] = {"va": "top", "transform": axes.transAxes, "in_layout": False}
    axes.text(0.0, height, label, color=colour, fontsize=8, **place)
    axes.text(0.11, height, lines, color="black", fontsize=9.5, **place)
