"""What the pictures of a run have in common: colours, figures without a window system, lines over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#1f5fa8", "#c8540a", "#777777"
SMOOTHING = 0.8
OPTIMIZER_STEPS = "optimizer step"


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start: m_t = sum_s b^(t-s) x_s / sum_s b^(t-s)."""
    average, weight, curve = 0.0, 0.0, []
    for value in values:
        average = SMOOTHING * average + value
        weight = SMOOTHING * weight + 1.0
        curve.append(average / weight)
    return curve


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of that size in inches; without a layout every place is the caller's."""
    # Built without pyplot: no global state, and no window system is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")


def series(
    history: Sequence[Mapping[str, Any]], name: str, over: str = "step"
) -> tuple[list[float], list[float]]:
    """Where and what of the log lines that have that number."""
    points = [(line[over], line[name]) for line in history if line.get(name) is not None and over in line]
    return [float(place) for place, _ in points], [float(value) for _, value in points]


def draw_smoothed(
    axes: Axes, places: Sequence[float], values: Sequence[float], label: str | None = None
) -> None:
    """A pale line of the values, and their moving average."""
    axes.plot(places, values, color=BLUE, alpha=0.3, linewidth=1)
    axes.plot(places, smoothed(values), color=BLUE, linewidth=2, label=label)


def finish(axes: Axes, title: str, over: str = OPTIMIZER_STEPS) -> None:
    """Title, what the lines run over, and a quiet frame."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(over, fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
