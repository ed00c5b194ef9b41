"""The picture of an agent's training: return, exploration and loss over steps in environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmft.report.agent_record import RANDOM
from mmft.report.figures import BLUE, GREY, ORANGE, draw_smoothed, finish, new_figure, save_figure, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE = "environment_steps"
STEPS = "steps in environments"
EXPLORATION = {
    "epsilon": "epsilon, the share of random actions",
    "temperature": "temperature of Boltzmann exploration",
    "entropy": "entropy of the policy (nats)",
}
"""How much an agent tries, by the name under which it is logged."""
SCHEDULED = ("epsilon", "temperature")
"""What has no noise that an average would take away."""


def draw_agent_curves(
    history: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    evaluated: tuple[float, float],
    before: str,
    best: float | None = None,
) -> None:
    """Writes return, exploration (where it was logged) and loss as a PNG.

    Args:
        history: log lines with `environment_steps`, and those of evaluations.
        path: of the picture.
        evaluated: mean return of the evaluations before and after training.
        before: what the first of them is called.
        best: mean of the best possible returns, if it is known.
    """
    logged = {name: title for name, title in EXPLORATION.items() if series(history, name, PLACE)[0]}
    panels = dict([*logged.items()][:1]) | {"loss": "loss"}
    figure = new_figure(4.5 * (1 + len(panels)), 3.4)
    first, *others = figure.subplots(1, 1 + len(panels))
    _draw_return(first, history, evaluated, before, best)
    for axes, (name, title) in zip(others, panels.items(), strict=True):
        if name in SCHEDULED:
            axes.plot(*series(history, name, PLACE), color=BLUE, linewidth=2)
        else:
            draw_smoothed(axes, *series(history, name, PLACE))
        _finish(axes, title)
        axes.set_xlim(first.get_xlim())
    save_figure(figure, path)


def _draw_return(
    axes: Axes,
    history: Sequence[Mapping[str, Any]],
    evaluated: tuple[float, float],
    before: str,
    best: float | None,
) -> None:
    draw_smoothed(axes, *series(history, "return", PLACE), "episodes in training")
    places, returns = _evaluations(history, evaluated)
    label = f"evaluation ({before} at 0)" if before == RANDOM else "evaluation"
    axes.plot(places, returns, "o", color=ORANGE, label=label, zorder=3)
    if best is not None:
        axes.axhline(best, color=GREY, linewidth=1, linestyle="--", label="best possible")
    _finish(axes, "return of an episode")
    axes.legend(frameon=False, loc="best", fontsize=9)


def _finish(axes: Axes, title: str) -> None:
    finish(axes, title, STEPS)
    axes.locator_params(axis="x", nbins=5)  # numbers of steps are long
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _evaluations(
    history: Sequence[Mapping[str, Any]], evaluated: tuple[float, float]
) -> tuple[list[float], list[float]]:
    """Where evaluations were, those during training among them, and their mean returns."""
    lines = [line for line in history if PLACE in line]
    steps, places = [line["step"] for line in lines] or [0], [line[PLACE] for line in lines] or [0]
    during = [
        (float(np.interp(line["step"], steps, places)), float(line["eval_return"]))
        for line in history
        if line.get("eval_return") is not None and 0 < line["step"] < steps[-1]
    ]
    points = [(0.0, evaluated[0]), *during, (float(places[-1]), evaluated[1])]
    return [place for place, _ in points], [value for _, value in points]
