"""Recorded episodes as a strip of frames (PNG) and as a moving picture (GIF).

Beside each picture stands the score of every action, the chosen one marked.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmft.report.episodes import Frame, Recording, evenly
from mmft.report.figures import BLUE, GREY, ORANGE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRIP_FRAMES = 12
"""Of one episode at most."""
COLUMNS = 6
GIF_FRAMES = 60
"""Over all episodes at most, which keeps the file below a megabyte."""
GIF_SIZE = (4.6, 2.5)
"""Inches, at 100 pixels each."""
STEP_MILLISECONDS, END_MILLISECONDS = 800, 1600
NAME_LENGTH = 9
"""Letters of an action's name."""
SHOWN_ACTIONS = 10
"""Bars at most: the best actions of the frame, in their own order."""


def draw_strip(recordings: Sequence[Recording], path: Path, scores: str = "score") -> None:
    """Writes the frames of each episode side by side.

    Args:
        recordings: the episodes, one at least.
        path: of the PNG.
        scores: what the scores of the actions are.
    """
    lines = _lines(recordings)
    columns = max(len(line) for line, _ in lines)
    bars = min(SHOWN_ACTIONS, len(recordings[0].action_names))
    heights = [1.5 + 0.17 * bars + (0.75 if title else 0.45) for _, title in lines]
    figure = new_figure(max(1.75 * columns, 5.0), sum(heights) + 0.3)
    figure.suptitle(f"bars: {scores} of each action, the chosen one in orange", fontsize=8, color=GREY)
    bounds = _bounds(recordings)
    parts: Any = figure.subfigures(len(lines), 1, height_ratios=heights, squeeze=False)
    for part, (line, title) in zip(parts[:, 0], lines, strict=True):
        if title:
            part.suptitle(title, fontsize=10, x=0.01, ha="left")
        axes = part.subplots(2, columns, squeeze=False, height_ratios=[1.45, 0.17 * bars + 0.1])
        for column in range(columns):
            upper, lower = axes[:, column]
            upper.axis("off")
            lower.axis("off")
            if column < len(line):
                recording, place, frame, head = line[column]
                _draw_picture(upper, frame)
                _write_heads(upper, recording, place, frame, head)
                _draw_bars(lower, recording, frame, bounds)
    save_figure(figure, path)


Placed = tuple[Recording, int, Frame, str]
"""A frame, where it is from, its place there, and what is written above it."""


def _lines(recordings: Sequence[Recording]) -> list[tuple[list[Placed], str]]:
    """The lines of a strip: an episode has its own, with a title; those of one step share theirs."""
    lines: list[tuple[list[Placed], str]] = []
    short = [each for each in recordings if len(each.frames) == 1]
    for start in range(0, len(short), COLUMNS):
        placed = [(each, 0, each.frames[0], each.frames[0].text) for each in short[start : start + COLUMNS]]
        lines.append((placed, ""))
    for each in recordings:
        if len(each.frames) > 1:
            chosen = [(each, place, frame, "") for place, frame in evenly(each.frames, STRIP_FRAMES)]
            for start in range(0, len(chosen), COLUMNS):
                lines.append((chosen[start : start + COLUMNS], "" if start else _title(each)))
    return lines


def _title(recording: Recording) -> str:
    return f"{_plain(recording.frames[0].text, 80)}   ({recording.outcome})"


def draw_gif(recordings: Sequence[Recording], path: Path, scores: str = "score") -> None:
    """Writes the episodes one after the other as a moving picture that begins again.

    Args:
        recordings: the episodes, one at least.
        path: of the GIF.
        scores: what the scores of the actions are.
    """
    bounds = _bounds(recordings)
    quota = max(GIF_FRAMES // len(recordings), 2)
    images, durations = [], []
    for recording in recordings:
        chosen = evenly(recording.frames, quota)
        images += [_gif_frame(recording, place, frame, bounds, scores) for place, frame in chosen]
        durations += [STEP_MILLISECONDS] * (len(chosen) - 1) + [END_MILLISECONDS]
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = images
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


def _gif_frame(
    recording: Recording, place: int, frame: Frame, bounds: tuple[float, float], scores: str
) -> Image.Image:
    figure = new_figure(*GIF_SIZE, layout=None)
    picture = figure.add_axes((0.02, 0.04, 0.5, 0.72))
    picture.axis("off")
    _draw_picture(picture, frame)
    side = figure.add_axes((0.56, 0.1, 0.42, 0.52))
    side.axis("off")
    _draw_bars(side, recording, frame, bounds)
    last = place == len(recording.frames) - 1
    text = textwrap.fill(_plain(frame.text, 120), 64, max_lines=2, placeholder=" ...")
    below = 0.62 if frame.action is None else 0.02
    figure.text(0.02, 0.97, text, fontsize=8.5, va="top")
    figure.text(0.56, 0.74, _step(recording, place, frame), fontsize=8.5, va="top", weight="bold")
    figure.text(0.97, 0.74, _earned(frame), fontsize=8.5, va="top", ha="right", color=ORANGE)
    figure.text(0.56, below, recording.outcome if last else scores, fontsize=8, color=GREY)
    canvas: Any = figure.canvas
    canvas.draw()
    width, height = canvas.get_width_height()
    pixels = Image.frombuffer("RGBA", (width, height), bytes(canvas.buffer_rgba()))
    return pixels.convert("RGB").quantize(64, dither=Image.Dither.NONE)


def _draw_picture(axes: Axes, frame: Frame) -> None:
    if frame.picture is None:
        text = textwrap.fill(_plain(frame.text, 160), 24, max_lines=6, placeholder=" ...")
        axes.text(0.5, 0.5, text, fontsize=8, ha="center", va="center", transform=axes.transAxes)
        return
    small = max(frame.picture.size) < 150
    axes.imshow(frame.picture, interpolation="nearest" if small else "antialiased")


def _write_heads(axes: Axes, recording: Recording, place: int, frame: Frame, head: str) -> None:
    """The step and its reward above a picture; for episodes of one step also what was read."""
    if head:
        lines = textwrap.fill(_plain(head, 90), 24, max_lines=3, placeholder=" ...")
        axes.set_title(f"{lines}\n{recording.outcome}", fontsize=7.5, loc="left")
        return
    axes.set_title(_step(recording, place, frame), fontsize=8, loc="left")
    axes.set_title(_earned(frame), fontsize=8, loc="right", color=ORANGE)


def _step(recording: Recording, place: int, frame: Frame) -> str:
    return "end" if frame.action is None else f"step {place + 1} of {recording.num_steps}"


def _earned(frame: Frame) -> str:
    return "" if frame.reward is None else f"{frame.reward:+.2f}"


def _bounds(recordings: Sequence[Recording]) -> tuple[float, float]:
    """The least and the largest score of legal actions, 0 among them: bars of all frames are comparable."""
    legal = [
        score
        for recording in recordings
        for frame in recording.frames
        for score, may in zip(frame.scores, frame.legal, strict=True)
        if may and math.isfinite(score)
    ]
    return min([0.0, *legal]), max([0.0, *legal])


def _draw_bars(axes: Axes, recording: Recording, frame: Frame, bounds: tuple[float, float]) -> None:
    if not frame.scores:
        return
    low, high = bounds
    span = (high - low) or 1.0
    shown = _shown_actions(frame)
    for row, action in enumerate(shown):
        score, chosen = frame.scores[action], action == frame.action
        look: dict[str, Any] = {"va": "center", "weight": "bold" if chosen else "normal"}
        name = _plain(recording.action_names[action], NAME_LENGTH)
        axes.text(0.0, row, name, fontsize=7, transform=axes.get_yaxis_transform(), **look)
        if not frame.legal[action]:
            axes.text(low, row, "not allowed", fontsize=6.5, color=GREY, va="center")
            continue
        axes.barh(row, score, height=0.72, color=ORANGE if chosen else BLUE, alpha=1.0 if chosen else 0.55)
        axes.text(max(score, 0.0) + 0.04 * span, row, f"{round(score, 2) + 0.0:.2f}", fontsize=6.5, **look)
    axes.axvline(0.0, color=GREY, linewidth=0.7)
    # Room for the names on the left and for the numbers on the right.
    axes.set_xlim(low - 0.8 * span, high + 0.45 * span)
    axes.set_ylim(len(shown) - 0.5, -0.5)


def _shown_actions(frame: Frame) -> list[int]:
    ranked = sorted(
        range(len(frame.scores)),
        key=lambda action: (action != frame.action, not frame.legal[action], -frame.scores[action]),
    )
    return sorted(ranked[:SHOWN_ACTIONS])


def _plain(text: str, width: int) -> str:
    """One line of a text; a dollar sign would start a formula."""
    words = " ".join(text.split()) or "(no text)"
    return (words if len(words) <= width else words[: width - 2].rstrip() + "..").replace("$", r"\$")
