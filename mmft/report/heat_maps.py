"""One explanation as a picture: heat over what was seen, shades behind what was read and said, and shares.

What the heat is comes from `engine.attribution`; here it is scaled for the eye, each picture from 0 to its
own largest number, which the colour bar tells. Left out: smoothing, which would show more than was measured.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmft.report.figures import BLUE, GREY, ORANGE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAT, SHADE = "inferno", "magma_r"
"""Perceptually uniform: of pictures from dark to bright, of words from pale to dark."""
VEIL = 0.62
"""Opacity of the heat over a picture."""
DARKEST = 0.62
"""Of `SHADE`, so that black letters stay legible on it."""
MAX_PICTURES, MAX_TOKENS, MAX_BARS = 4, 400, 10
WIDTH, MARGIN, SIDE = 9.4, 0.25, 3.0
"""Inches: of the page, around it, and of a picture."""
HEAD, GAP, LINE, BAR = 0.5, 0.25, 0.24, 0.26
"""Inches: of the title, below a picture, from one line of text to the next, and from bar to bar."""
BARS_LEFT = 7.95
"""Inches from the left to where the bars begin; their names stand before it."""
NAME_LENGTH, TITLE_LENGTH, PIECE_LENGTH = 12, 110, 24
FONT_SIZE = 9
PARTS = {"prompt": "read", "answer": "said"}
"""What the parts of the text are called above them."""


@dataclass(frozen=True, slots=True)
class HeatPicture:
    """One picture that was seen, with its heat."""

    picture: Image.Image
    grid: tuple[int, int] | None = None
    """Rows and columns of patches; None where nobody knows them, and no heat is drawn."""
    patches: Sequence[float] = ()
    """One number >= 0 per patch, row by row from the top."""


@dataclass(frozen=True, slots=True)
class HeatToken:
    """One piece of text."""

    text: str
    importance: float
    part: str = "prompt"
    """`prompt` or `answer`."""
    marked: bool = False
    """Whether it is the one that is explained."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What an agent thinks of one action."""

    name: str
    score: float
    chosen: bool = False
    legal: bool = True


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Everything a picture of one explanation shows."""

    title: str
    """What is explained, and its value."""
    pictures: Sequence[HeatPicture]
    tokens: Sequence[HeatToken]
    shares: Mapping[str, float]
    """By modality; they add up to 1."""
    unit: str = "importance"
    """Of the heat; stands beside the colour bar."""
    choices: Sequence[Choice] = field(default=())
    """Of an agent: its actions."""
    score: str = "score"
    """What the scores of the choices are."""


def draw_heat_map(heat: HeatMap, path: Path) -> None:
    """Writes the picture as a PNG."""
    figure = new_figure(WIDTH, 1.0, layout=None)
    sections = _sections(heat.tokens, _measure(figure))
    shown = list(heat.pictures[:MAX_PICTURES])
    heights = [_height(each.picture) for each in shown]
    beside = sum(
        bar * len(part) + 0.5 for bar, part in ((BAR, heat.shares), (BAR, _shown(heat.choices))) if part
    )
    top = max(sum(heights) + GAP * len(heights), beside)
    text = sum(LINE * (len(lines) + 1.4) for _, lines in sections)
    height = MARGIN * 2 + HEAD + top + text
    figure.set_size_inches(WIDTH, height)
    _write(figure, MARGIN, height - MARGIN, _one_line(heat.title, TITLE_LENGTH), size=11, va="top")
    below = height - MARGIN - HEAD
    for each, tall in zip(shown, heights, strict=True):
        below -= tall
        _draw_picture(figure, each, (below, tall), heat.unit)
        below -= GAP
    _draw_bars(figure, heat, height - MARGIN - HEAD)
    _draw_text(figure, sections, height - MARGIN - HEAD - top, _largest(heat.tokens))
    with warnings.catch_warnings():
        # Letters that the font lacks become boxes; the text itself is beside the picture.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        save_figure(figure, path)


# Pictures


def _height(picture: Image.Image) -> float:
    """Inches; of a wide one less than its width, of a thin line still something."""
    return SIDE * min(max(picture.height / picture.width, 0.2), 1.0)


def _draw_picture(figure: Figure, seen: HeatPicture, place: tuple[float, float], unit: str) -> None:
    """The picture, and beside it the same under its heat; `place` is where it ends below, and its height."""
    bottom, tall = place
    small = max(seen.picture.size) < 150
    smoothing = "nearest" if small else "antialiased"
    height = figure.get_figheight()
    places = [(left / WIDTH, bottom / height, SIDE / WIDTH, tall / height) for left in (MARGIN, 3.4)]
    for number, box in enumerate(places):
        axes = figure.add_axes(box)
        axes.axis("off")
        axes.imshow(seen.picture.convert("RGB"), interpolation=smoothing)
        if number and seen.grid is not None:
            size = seen.picture.size
            drawn = axes.imshow(
                _heat(seen.patches, seen.grid),
                cmap=HEAT,
                alpha=VEIL,
                interpolation="nearest",
                extent=(-0.5, size[0] - 0.5, size[1] - 0.5, -0.5),
                vmin=0.0,
                vmax=max(seen.patches, default=0.0) or 1.0,
            )
            bar = figure.add_axes((6.5 / WIDTH, bottom / height, 0.1 / WIDTH, tall / height))
            figure.colorbar(drawn, cax=bar)
            bar.tick_params(labelsize=7, length=2)
            bar.set_title(unit, fontsize=7, color=GREY, loc="right", pad=4, parse_math=False)
        elif number:
            axes.set_title("no heat: the layout of the image rows is unknown", fontsize=7, color=GREY)


def _heat(patches: Sequence[float], grid: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    if len(patches) != grid[0] * grid[1]:
        raise ValueError(f"`patches` has {len(patches)} numbers for a `grid` of {grid[0]} x {grid[1]}.")
    return np.asarray(patches, dtype=np.float64).reshape(grid)


# Shares and choices


def _draw_bars(figure: Figure, heat: HeatMap, top: float) -> None:
    """What each modality counts; below it what an agent thinks of each action."""
    if heat.shares:
        shares = [Choice(name, share) for name, share in heat.shares.items()]
        top = _draw_bar_chart(figure, shares, top, "share of the importance", "{:.0%}", (0.0, 1.0))
    if heat.choices:
        shown = _shown(heat.choices)
        scores = [each.score for each in shown if each.legal]
        bounds = min([0.0, *scores]), max([0.0, *scores])
        _draw_bar_chart(figure, shown, top - 0.15, heat.score, "{:.2f}", bounds)


def _draw_bar_chart(
    figure: Figure,
    bars: Sequence[Choice],
    top: float,
    title: str,
    form: str,
    bounds: tuple[float, float],
) -> float:
    """Draws the bars from `top` (inches) downwards; returns where they end."""
    height, tall = figure.get_figheight(), BAR * len(bars)
    _write(figure, BARS_LEFT - 0.6, top, title, size=8, va="top", color=GREY)
    right = WIDTH - MARGIN - 0.45
    place = (BARS_LEFT / WIDTH, (top - 0.2 - tall) / height, (right - BARS_LEFT) / WIDTH, tall / height)
    axes = figure.add_axes(place)
    axes.axis("off")
    low, high = bounds
    span = (high - low) or 1.0
    for row, bar in enumerate(bars):
        weight = "bold" if bar.chosen else "normal"
        look: dict[str, Any] = {"fontsize": 8, "va": "center", "weight": weight, "parse_math": False}
        axes.text(-0.06, row, _one_line(bar.name, NAME_LENGTH), ha="right",
                  transform=axes.get_yaxis_transform(), **look)  # fmt: skip
        if not bar.legal:
            axes.text(low, row, "not allowed", color=GREY, **look)
            continue
        axes.barh(row, bar.score, height=0.7, color=ORANGE if bar.chosen else BLUE)
        axes.text(max(bar.score, 0.0) + 0.04 * span, row, form.format(bar.score + 0.0), **look)
    axes.axvline(0.0, color=GREY, linewidth=0.7)
    axes.set_xlim(low, low + span)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    return top - 0.2 - tall


def _shown(choices: Sequence[Choice]) -> list[Choice]:
    """At most `MAX_BARS`: the chosen one and the best of the others, in their own order."""
    order = sorted(
        range(len(choices)),
        key=lambda n: (not choices[n].chosen, not choices[n].legal, -choices[n].score),
    )
    return [choices[number] for number in sorted(order[:MAX_BARS])]


# Text

Placed = tuple[float, float, HeatToken, str]
"""Inches from the left margin, width in inches, the token, and the piece of it that stands there."""
Lines = list[list[Placed]]


def _sections(
    tokens: Sequence[HeatToken], measure: Callable[[str], float]
) -> list[tuple[str, list[list[Placed]]]]:
    """Heading and lines of each part of the text, in the order of the parts."""
    sections = []
    for part, heading in PARTS.items():
        own = [token for token in tokens if token.part == part]
        left_out = len(own) - MAX_TOKENS
        # The end of a prompt is what was asked; the end of an answer is where it leads.
        shown = own[-MAX_TOKENS:] if part == "prompt" else own[:MAX_TOKENS]
        if shown:
            note = f" ({left_out} more tokens are not shown)" if left_out > 0 else ""
            sections.append((heading + note, flow(shown, WIDTH - 2 * MARGIN, measure)))
    return sections


def flow(tokens: Sequence[HeatToken], width: float, measure: Callable[[str], float]) -> Lines:
    """Tokens set in lines of `width`; what is wider than a line is cut into pieces.

    Args:
        tokens: in their order.
        width: of a line.
        measure: the width of a text.
    """
    lines: Lines = [[]]
    left = 0.0
    for token in tokens:
        for piece in _pieces(visible(token.text), width, measure):
            wide = measure(piece)
            if left + wide > width and lines[-1]:
                lines.append([])
                left = 0.0
            lines[-1].append((left, wide, token, piece))
            left += wide
    return lines


def _pieces(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    if measure(text) <= width and len(text) <= PIECE_LENGTH:
        return [text]
    pieces = [text[start : start + PIECE_LENGTH] for start in range(0, len(text), PIECE_LENGTH)]
    return [part for piece in pieces for part in ([piece] if measure(piece) <= width else piece)]


def visible(text: str) -> str:
    """The text with a sign for what has no width or would break the line, and no other marks of control."""
    shown = text.replace("\r\n", "\n").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
    shown = shown.replace("\t", "    ")
    # Marks of direction or of control, and halves of surrogate pairs, would upset whoever draws them.
    return "".join("\N{MIDDLE DOT}" if unicodedata.category(each).startswith("C") else each for each in shown)


def _draw_text(figure: Figure, sections: Sequence[tuple[str, Lines]], top: float, largest: float) -> None:
    import matplotlib
    from matplotlib.patches import Rectangle

    shades = matplotlib.colormaps[SHADE]
    for heading, lines in sections:
        note = f"{heading}; the darkest shade is {largest:.3g}"
        _write(figure, MARGIN, top - LINE * 0.8, note, size=8, color=GREY)
        top -= LINE * 1.1
        for line in lines:
            top -= LINE
            for left, wide, token, piece in line:
                scaled = token.importance / largest if largest > 0 else 0.0
                shade = shades(scaled * DARKEST)
                box = Rectangle(
                    (MARGIN + left, top - 0.05),
                    wide,
                    LINE - 0.03,
                    facecolor=shade,
                    edgecolor=BLUE if token.marked else "white",
                    linewidth=1.4 if token.marked else 0.4,
                    transform=figure.dpi_scale_trans,
                )
                figure.add_artist(box)
                ink = "white" if scaled * DARKEST > 0.5 else "black"
                _write(figure, MARGIN + left, top, piece, size=FONT_SIZE, color=ink)
        top -= LINE * 0.3


def _largest(tokens: Sequence[HeatToken]) -> float:
    return max((token.importance for token in tokens), default=0.0)


def _measure(figure: Figure) -> Callable[[str], float]:
    """Width of a text in inches, as it will be written."""
    from matplotlib.font_manager import FontProperties

    canvas: Any = figure.canvas
    renderer, font = canvas.get_renderer(), FontProperties(size=FONT_SIZE)

    def width(text: str) -> float:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            pixels, _, _ = renderer.get_text_width_height_descent(text, font, False)
        return float(pixels) / figure.dpi

    return width


def _write(figure: Figure, left: float, bottom: float, text: str, *, size: float, **look: Any) -> None:
    """Text at inches from the lower left; a dollar sign is a dollar sign."""
    figure.text(left, bottom, text, fontsize=size, transform=figure.dpi_scale_trans, parse_math=False, **look)


def _one_line(text: str, length: int) -> str:
    words = " ".join(visible(text).split())
    return words if len(words) <= length else words[: length - 2].rstrip() + ".."
