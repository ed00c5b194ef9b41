"""Pictures of a run are drawn for long, short and odd histories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmft.report.curves import GIVEN, POLICY, draw_curves, draw_overview

HISTORY = [
    *({"step": step, "loss": 0.1, "reward": 0.1 * step, "kl": 0.01 * step} for step in range(1, 6)),
    {"step": 6, "loss": 0.1},  # a step within a rollout has no reward of its own
    {"step": 6, "train_runtime": 1.0},
]


def drawn(path: Path) -> np.ndarray:
    return np.asarray(PIL.Image.open(path).convert("RGB"))


def test_curves_show_the_history(tmp_path: Path):
    draw_curves(HISTORY, tmp_path / "curves.png", (0.0, 0.5))
    draw_curves(
        [{**line, "reward": 1.0} if "reward" in line else line for line in HISTORY], tmp_path / "flat.png"
    )
    one, other = drawn(tmp_path / "curves.png"), drawn(tmp_path / "flat.png")
    assert one.shape == other.shape
    assert one.min() < 100 < one.max() == 255
    assert (one != other).any()


def test_every_price_that_was_logged_has_a_panel_of_its_own(tmp_path: Path):
    far = [{**line, "regularization/distance": 0.2 * line["step"]} for line in HISTORY]
    free = [{name: value for name, value in line.items() if name != "kl"} for line in HISTORY]
    widths = {}
    for name, history in {"kl": HISTORY, "both": far, "none": free}.items():
        draw_curves(history, tmp_path / "curves.png")
        draw_overview(history, [], tmp_path / "overview.png")
        widths[name] = drawn(tmp_path / "curves.png").shape[1]
    assert widths["both"] == widths["kl"] * 3 / 2
    assert widths["none"] == widths["kl"], "the loss takes the place of a price that nobody pays"


@pytest.mark.parametrize("history", [[], HISTORY[:1], HISTORY[5:]], ids=["empty", "one", "no reward"])
def test_curves_of_a_run_that_hardly_began_are_drawn_too(history: list[dict[str, float]], tmp_path: Path):
    draw_curves(history, tmp_path / "curves.png", (0.1, 0.2))
    assert drawn(tmp_path / "curves.png").std() > 0


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_overview_takes_any_number_of_samples_and_any_text(count: int, tmp_path: Path):
    picture = PIL.Image.new("RGB", (64, 48), "red")
    samples = [
        (picture if row % 2 == 0 else None, "costs $5 and $6 {", ("long " if row % 2 else "WWWWW") * 100)
        for row in range(count)
    ]
    draw_overview(HISTORY, samples, tmp_path / "overview.png", (0.1, 0.2))
    pixels = drawn(tmp_path / "overview.png")
    red = (pixels == [255, 0, 0]).all(-1).sum()
    assert (red > 0) == (count > 0)


def test_the_reward_of_given_completions_is_not_called_that_of_training(tmp_path: Path):
    for name, source in {"own": POLICY, "given": GIVEN}.items():
        draw_curves(HISTORY, tmp_path / f"{name}.png", source=source)
        draw_overview(HISTORY, [], tmp_path / f"{name}_overview.png", source=source)
    assert (drawn(tmp_path / "own.png") != drawn(tmp_path / "given.png")).any()
    assert (drawn(tmp_path / "own_overview.png") != drawn(tmp_path / "given_overview.png")).any()
