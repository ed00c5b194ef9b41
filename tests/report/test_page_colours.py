"""Colours of the report page: text is read, lines are told apart, in both themes and by all eyes."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from mmft.report.page import HTML

Vector = list[float]

COLOURS = {
    name: dict(zip(("light", "dark"), pair, strict=True))
    for name, *pair in re.findall(
        r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", (HTML / "style.css").read_text(encoding="utf-8")
    )
}


def channels(name: str, theme: str) -> Vector:
    code = COLOURS[name][theme]
    return [int(code[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def linear(colour: Vector) -> Vector:
    """Channels of sRGB as amounts of light."""
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]


def luminance(colour: Vector) -> float:
    """Relative luminance (WCAG 2.2)."""
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Vector, other: Vector) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21():
    assert contrast([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]) == pytest.approx(21.0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(theme: str):
    pairs = [
        (text, behind)
        for text in ("text", "muted", "accent", "good", "bad")
        for behind in ("page", "surface")
    ]
    pairs += [
        ("text", "sunken"),
        ("muted", "sunken"),
        ("text", "good-soft"),
        ("text", "bad-soft"),
        ("text", "warning-soft"),
    ]
    pairs += [("on-accent", "accent")]
    for text, behind in pairs:
        assert contrast(channels(text, theme), channels(behind, theme)) >= 4.5, (text, behind)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_and_the_edges_of_controls_stand_out(theme: str):
    for name in (*(f"ink-{number}" for number in range(6)), "edge", "accent"):
        assert contrast(channels(name, theme), channels("surface", theme)) >= 3, name


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_token_can_be_read_on_its_strongest_colour(theme: str):
    (strongest,) = re.findall(r"STRONGEST = (\d+)", (HTML / "tokens.js").read_text(encoding="utf-8"))
    share = int(strongest) / 100
    for ink in ("sequential", "positive", "negative"):
        mixed = [
            share * a + (1 - share) * b
            for a, b in zip(channels(ink, theme), channels("surface", theme), strict=True)
        ]
        assert contrast(channels("text", theme), mixed) >= 4.5, ink


# Linear channels as they are seen without one kind of cone (Machado et al. 2009, severity 1).
SEEN = {
    "all": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = (0.9505, 1.0, 1.089)


def times(matrix: list[Vector], vector: Vector) -> Vector:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def lab(linear: Vector) -> Vector:
    """CIE L*a*b*, in which a distance of 2 is just seen."""
    parts = [value / white for value, white in zip(times(XYZ, linear), WHITE, strict=True)]
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in parts)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def test_lightness_of_white_is_100_and_it_has_no_hue():
    assert lab([1.0, 1.0, 1.0]) == pytest.approx([100, 0, 0], abs=0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eyes", SEEN)
def test_any_two_series_are_told_apart(theme: str, eyes: str):
    seen = [
        lab(
            [
                min(1.0, max(0.0, value))
                for value in times(SEEN[eyes], linear(channels(f"ink-{number}", theme)))
            ]
        )
        for number in range(6)
    ]
    for one, other in itertools.combinations(range(6), 2):
        assert math.dist(seen[one], seen[other]) >= 20, (one, other)
