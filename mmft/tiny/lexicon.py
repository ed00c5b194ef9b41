"""The words and objects of the packaged scenes: what a picture can show and how it is called.

Few, clearly distinct colours and shapes: a model of two million parameters shall be right about what it
states, and breadth would cost accuracy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (245, 135, 20),
    "yellow": (245, 210, 30),
    "green": (35, 150, 65),
    "blue": (45, 90, 225),
    "purple": (140, 55, 185),
    "pink": (250, 140, 190),
    "black": (30, 30, 35),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "star")
DIAMETERS: dict[str, tuple[int, int]] = {"small": (13, 15), "large": (24, 26)}
"""Range of the diameter in pixels for each size word; the gap between the ranges keeps the words apart."""
RELATIONS: dict[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Each relation and its inverse: a is left of b exactly when b is right of a."""

CANVAS = 64
"""Width and height of every picture in pixels."""
CLEARLY = 6.0
"""Pixels between two centres from which on one object counts as beside, above or below the other."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One coloured shape; `x` and `y` are its centre in pixels, y grows downwards."""

    colour: str
    shape: str
    size: str
    x: float
    y: float

    def as_dict(self) -> dict[str, Any]:
        """The object as plain values, the form of the `facts` column."""
        return asdict(self)


def dominant_relation(first: SceneObject, second: SceneObject) -> str:
    """The relation of `first` to `second` along the axis on which their centres are further apart."""
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def holds(relation: str, first: SceneObject, second: SceneObject) -> bool:
    """Whether `first` is clearly (`CLEARLY` pixels or more) in this relation to `second`."""
    gap = {
        "left of": second.x - first.x,
        "right of": first.x - second.x,
        "above": second.y - first.y,
        "below": first.y - second.y,
    }[relation]
    return gap >= CLEARLY
