"""Pictures of episodes: every frame, every score, the chosen action marked, and nothing over the edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mmft.report import episode_pictures
from mmft.report.episode_pictures import (
    COLUMNS,
    GIF_FRAMES,
    SHOWN_ACTIONS,
    STRIP_FRAMES,
    draw_gif,
    draw_strip,
)
from mmft.report.episodes import Frame, Recording
from mmft.report.figures import BLUE, ORANGE, new_figure

NAMES = ("up", "right", "down", "left")


def recording(
    num_frames: int,
    num_actions: int = 4,
    *,
    size: int = 16,
    text: str = "go to the red star",
    end: bool = True,
) -> Recording:
    random = np.random.default_rng(num_frames)
    names = (NAMES * num_actions)[:num_actions]
    frames = [
        Frame(
            PIL.Image.fromarray(random.integers(0, 60, (size, size, 3), dtype=np.uint8)),
            text,
            tuple(random.normal(size=num_actions).tolist()),
            (True,) * num_actions,
            int(random.integers(num_actions)),
            -0.05,
        )
        for _ in range(num_frames)
    ]
    return Recording([*frames, Frame(frames[0].picture, text)] if end else frames, names, success=True)


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def durations(path: Path) -> list[int]:
    """How long each frame of a moving picture stays; it must go round for ever."""
    image: Any
    with PIL.Image.open(path) as image:
        assert image.info["loop"] == 0
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(image.info["duration"])
        return found


def amount(path: Path, colour: str) -> int:
    """Pixels that are nearly of a colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(pixels(path) - wanted).max(-1) < 12).sum())


def test_a_strip_shows_the_chosen_action_in_orange(tmp_path: Path):
    plain = recording(3)
    draw_strip([plain], tmp_path / "chosen.png")
    frames = [Frame(each.picture, each.text, each.scores, each.legal, None, None) for each in plain.frames]
    draw_strip([Recording(frames, NAMES)], tmp_path / "none.png")
    assert amount(tmp_path / "chosen.png", ORANGE) > 1000
    assert amount(tmp_path / "none.png", ORANGE) < 100


def test_longer_bars_are_higher_scores(tmp_path: Path):
    amounts = []
    for score in (0.2, 0.6, 1.0):
        frame = Frame(None, "which?", (score, 1.0, 0.5), (True,) * 3, 0, 1.0)
        draw_strip([Recording([frame], NAMES[:3])], tmp_path / "bar.png")
        amounts.append(amount(tmp_path / "bar.png", ORANGE))
    assert amounts[0] < amounts[1] < amounts[2]


def test_what_is_not_allowed_has_no_bar(tmp_path: Path):
    blue = "#" + "".join(f"{round(0.55 * int(BLUE[n : n + 2], 16) + 0.45 * 255):02x}" for n in (1, 3, 5))
    for name, legal in {"all": (True, True), "one": (True, False)}.items():
        frame = Frame(None, "which?", (0.5, 1.0), legal, 0, 1.0)
        draw_strip([Recording([frame], NAMES[:2])], tmp_path / f"{name}.png")
    assert amount(tmp_path / "all.png", blue) > 500
    assert amount(tmp_path / "one.png", blue) < 50


def test_a_long_episode_is_shown_in_so_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Frame] = []
    monkeypatch.setattr(episode_pictures, "_draw_picture", lambda axes, frame: drawn.append(frame))
    long = recording(40)
    draw_strip([long, recording(2)], tmp_path / "strip.png")
    assert len(drawn) == STRIP_FRAMES + 3
    assert drawn[0] is long.frames[0]
    assert drawn[STRIP_FRAMES - 1] is long.frames[-1]


def test_episodes_of_one_step_share_a_line(tmp_path: Path):
    for count in (1, COLUMNS, COLUMNS + 1):
        draw_strip([recording(1, end=False)] * count, tmp_path / f"{count}.png")
    heights = {count: pixels(tmp_path / f"{count}.png").shape[0] for count in (1, COLUMNS, COLUMNS + 1)}
    assert heights[1] == heights[COLUMNS] < heights[COLUMNS + 1]


@pytest.mark.parametrize(
    "told",
    [
        recording(2, text=r"costs $\frac$ {" + " very" * 60),
        recording(2, num_actions=30),
        recording(2, size=200),
        Recording([Frame(None, "only words", (0.0, 0.0), (True, True), 1, 0.0)], ("no", "yes")),
        Recording(
            [Frame(None, "", (-1.0, float("inf")), (True, False), 0, 0.0)], ("W" * 40, "b"), ended=False
        ),
    ],
    ids=["formula", "many actions", "photo", "no picture", "odd scores"],
)
def test_anything_can_be_drawn(told: Recording, tmp_path: Path):
    draw_strip([told], tmp_path / "strip.png", "probability")
    draw_gif([told], tmp_path / "moving.gif", "probability")
    assert amount(tmp_path / "strip.png", ORANGE) > 0 or told.frames[0].scores == (0.0, 0.0)
    assert len(durations(tmp_path / "moving.gif")) == len(told.frames)


def test_of_many_actions_the_best_are_shown_and_the_chosen_one(tmp_path: Path):
    scores = tuple(float(number) for number in range(30))
    frame = Frame(None, "which?", scores, (True,) * 29 + (False,), 2, 0.0)
    assert episode_pictures._shown_actions(frame) == [2, *range(20, 29)]
    assert len(episode_pictures._shown_actions(frame)) == SHOWN_ACTIONS


def test_names_bars_and_numbers_do_not_touch():
    scores = (-1.0, 1.0, 0.999, 0.0)
    frame = Frame(None, "go", scores, (True,) * 4, 1, 0.0)
    told = Recording([frame], ("move_up_and_away", "forward", "pickup", "down"))
    figure: Any = new_figure(1.75, 1.0)
    axes = figure.subplots()
    axes.axis("off")
    episode_pictures._draw_bars(axes, told, frame, (-1.0, 1.0))
    figure.canvas.draw()
    inside = axes.get_window_extent()
    bars = [patch.get_window_extent() for patch in axes.patches]
    names, numbers = axes.texts[0::2], axes.texts[1::2]
    assert len(bars) == len(names) == len(numbers) == 4
    for bar, name, number in zip(bars, names, numbers, strict=True):
        assert name.get_window_extent().x1 <= bar.x0
        assert bar.x1 <= number.get_window_extent().x0
        assert number.get_window_extent().x1 <= inside.x1 + 1


def test_a_moving_picture_shows_all_episodes_again_and_again(tmp_path: Path):
    draw_gif([recording(3), recording(1, end=False)], tmp_path / "moving.gif")
    # Each episode's end stays longer.
    assert durations(tmp_path / "moving.gif") == [800, 800, 800, 1600, 1600]


def test_a_moving_picture_stays_small(tmp_path: Path):
    draw_gif([recording(200, num_actions=7), recording(200, num_actions=7)], tmp_path / "moving.gif")
    assert len(durations(tmp_path / "moving.gif")) == GIF_FRAMES
    assert (tmp_path / "moving.gif").stat().st_size < 1_000_000
