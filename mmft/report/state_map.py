"""A map of fused states: each row of a split a point on the two axes along which states vary most.

The axes are those of the pretrained model's states; a trained model's are laid on them, so that a point that
moved is a state that moved. Left out: t-SNE and its like, whose distances mean little and whose maps differ
with the seed.

Shapes: N rows, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft.data.pca import PCA
from mmft.errors import ConfigError, DataError
from mmft.report.figures import GREY, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_ROWS = 3
"""Two axes need one point more."""
MAX_GROUPS = 10
"""Colours that the eye tells apart."""
FEW_NUMBERS = 6
"""So many different whole numbers at most are groups rather than a scale."""
NONE = "(none)"


@dataclass(frozen=True, slots=True)
class StateMap:
    """Points on the axes of the first states.

    Attributes:
        points: (N, 2) the states that the axes were made for.
        moved: (N, 2) the trained model's states of the same rows on the same axes, or None.
        explained: of the variance of the first states, the part along each axis.
    """

    points: Tensor
    moved: Tensor | None
    explained: tuple[float, float]


def map_states(states: Tensor, moved: Tensor | None = None) -> StateMap:
    """Principal components 1 and 2 of the states (`data.pca`), and where others lie on the same axes.

    Shapes: (N, D), (N, D) -> (N, 2), (N, 2).

    Raises:
        DataError: there are too few states for two axes.
    """
    both = {"states": (states, "ND")} | ({} if moved is None else {"moved": (moved, "ND")})
    check_shapes(**both)
    if len(states) < MIN_ROWS:
        raise DataError(f"a map of states needs at least {MIN_ROWS} rows; there are {len(states)}.")
    pca = PCA(states.shape[1], 2).to(states.device)
    with torch.no_grad():
        pca.update(states.detach())
        first, second = pca.explained_variance_ratio.tolist()
        points = pca(states.detach()).cpu()
        others = None if moved is None else pca(moved.detach()).cpu()
    return StateMap(points, others, (first, second))


def draw_state_map(
    found: StateMap,
    labels: Sequence[Any],
    column: str,
    path: Path,
    titles: Sequence[str] = ("before training", "after training"),
) -> None:
    """Writes the map as a PNG: one panel, or two on the same axes where states moved.

    Args:
        found: the points.
        labels: (N) by which points are coloured: numbers give a scale, a few words groups.
        column: what the labels are.
        path: of the PNG.
        titles: of the panels, one for each.

    Raises:
        ConfigError: the labels can be no colours.
    """
    colours = _colours(labels, column)
    panels = [found.points] + ([] if found.moved is None else [found.moved])
    figure = new_figure(4.4 * len(panels) + 1.8, 4.2)
    drawn: Any = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)
    for axes, points, title in zip(drawn[0], panels, titles, strict=False):
        _draw_points(axes, points, colours)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(f"component 1 ({found.explained[0]:.0%} of the variance)", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    drawn[0][0].set_ylabel(f"component 2 ({found.explained[1]:.0%} of the variance)", fontsize=9)
    if isinstance(colours, Scale):
        bar = figure.colorbar(drawn[0][-1].collections[0], ax=list(drawn[0]))
        bar.ax.set_title(_short(column), fontsize=8, parse_math=False)
    else:
        last = drawn[0][-1]
        legend = last.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
        legend.set_title(_short(column))
        for text in (*legend.get_texts(), legend.get_title()):
            text.set_parse_math(False)
    save_figure(figure, path)


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers, NaN where there is none."""

    values: list[float]


@dataclass(frozen=True, slots=True)
class Groups:
    """The group of each point, and all of them in the order of the legend."""

    values: list[str]
    names: list[str]


def check_labels(labels: Sequence[Any], column: str) -> None:
    """Refuses labels that can be no colours, before anything is computed for a map.

    Raises:
        ConfigError: there are none, they are neither numbers nor words, or they are too many words.
    """
    _colours(labels, column)


def _colours(labels: Sequence[Any], column: str) -> Scale | Groups:
    known = [each for each in labels if each is not None and each == each]
    if not known:
        raise ConfigError(f"`map-by` {column!r} holds nothing in these rows. Choose another column.")
    for each in known:
        if not isinstance(each, (str, Real)):
            raise ConfigError(
                f"`map-by` {column!r} holds {each!r:.60}, which can be no colour. Choose a column of numbers "
                "or of a few words."
            )
    numbers = [float(each) for each in known if type(each) is not bool and isinstance(each, Real)]
    if len(numbers) == len(known) and not _are_groups(numbers):
        return Scale([math.nan if each is None else float(each) for each in labels])
    names = [_name(each) for each in labels]
    counts = Counter(names)
    if len(counts) > MAX_GROUPS:
        raise ConfigError(
            f"`map-by` {column!r} has {len(counts)} different values in {len(labels)} rows, more than "
            f"{MAX_GROUPS} colours can tell. Choose a column of numbers or of fewer words."
        )
    return Groups(names, sorted(counts, key=lambda name: (name == NONE, name)))


def _name(label: Any) -> str:
    if label is None or label != label:
        return NONE
    return f"{label:g}" if isinstance(label, float) else str(label)


def _are_groups(numbers: Sequence[float]) -> bool:
    return len(set(numbers)) <= FEW_NUMBERS and all(each.is_integer() for each in numbers)


def _draw_points(axes: Axes, points: Tensor, colours: Scale | Groups) -> None:
    import matplotlib

    xs, ys = points[:, 0].tolist(), points[:, 1].tolist()
    look: dict[str, Any] = {"s": 18, "alpha": 0.8, "linewidths": 0.0}
    if isinstance(colours, Scale):
        known = [each for each in colours.values if not math.isnan(each)]
        missing = matplotlib.colormaps["viridis"].with_extremes(bad=GREY)
        look |= {"vmin": min(known), "vmax": max(known)}
        axes.scatter(xs, ys, c=colours.values, cmap=missing, plotnonfinite=True, **look)
        return
    palette = matplotlib.colormaps["tab10"]
    for number, name in enumerate(colours.names):
        own = [place for place, value in enumerate(colours.values) if value == name]
        colour = GREY if name == NONE else palette(number)
        axes.scatter([xs[n] for n in own], [ys[n] for n in own], color=colour, label=_label(name), **look)


def _label(name: str) -> str:
    # What begins with an underscore stays out of matplotlib's legends.
    short = _short(name)
    return f" {short}" if short.startswith("_") else short


def _short(text: str) -> str:
    words = " ".join(text.split()) or "(empty)"
    return words if len(words) <= 24 else words[:22].rstrip() + ".."
