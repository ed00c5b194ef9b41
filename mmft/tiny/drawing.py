"""Draws scenes with PIL: anti-aliased shapes on a light background, the same pixels for the same stream."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

from mmft.tiny.lexicon import CANVAS, COLOURS, DIAMETERS, SceneObject

# Shapes are drawn four times too large and averaged down, because PIL's polygons have hard edges.
OVERSAMPLING = 4
COLOUR_JITTER = 10

Point = tuple[float, float]
Colour = tuple[int, int, int]


def draw_scene(objects: Sequence[SceneObject], stream: random.Random) -> Image.Image:
    """Draws `objects` on a light background; `stream` varies shade, colour and diameter."""
    shade = stream.randint(222, 250)
    picture = Image.new("RGB", (CANVAS * OVERSAMPLING, CANVAS * OVERSAMPLING), (shade, shade, shade))
    pen = ImageDraw.Draw(picture)
    for item in objects:
        radius = stream.uniform(*DIAMETERS[item.size]) / 2
        _draw_shape(pen, item, radius, _jittered(COLOURS[item.colour], stream))
    return picture.reduce(OVERSAMPLING)


def _jittered(colour: Colour, stream: random.Random) -> Colour:
    red, green, blue = (
        min(255, max(0, channel + stream.randint(-COLOUR_JITTER, COLOUR_JITTER))) for channel in colour
    )
    return red, green, blue


def _draw_shape(pen: ImageDraw.ImageDraw, item: SceneObject, radius: float, fill: Colour) -> None:
    x, y, r = item.x * OVERSAMPLING, item.y * OVERSAMPLING, radius * OVERSAMPLING
    if item.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    else:
        pen.polygon([(x + r * u, y + r * v) for u, v in OUTLINES[item.shape]], fill=fill)


def _cross_outline(arm: float) -> list[Point]:
    """A plus sign whose arms are `2 * arm` wide and reach the unit square's edges."""
    a = arm
    upper = [(-a, -a), (-a, -1), (a, -1), (a, -a), (1, -a), (1, a)]
    # The lower half is the upper one turned by half a circle.
    return upper + [(-x, -y) for x, y in upper]


def _star_outline(inner: float) -> list[Point]:
    """A five-pointed star, one tip upwards: tips on the unit circle, notches at radius `inner`."""
    corners = []
    for step in range(10):
        length = 1.0 if step % 2 == 0 else inner
        angle = math.pi * step / 5
        corners.append((length * math.sin(angle), -length * math.cos(angle)))
    return corners


# Corners in units of the radius around the centre, y downwards.
OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -1), (1, 0.85), (-1, 0.85)],
    "cross": _cross_outline(0.33),
    "star": _star_outline(0.42),
}
