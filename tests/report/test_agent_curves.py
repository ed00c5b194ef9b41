"""Curves of agents run over steps in environments, with the evaluations where they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mmft.report.agent_curves import _evaluations, draw_agent_curves

HISTORY: list[dict[str, Any]] = [
    {"step": 10, "loss": 0.5, "environment_steps": 1040, "return": 0.1, "epsilon": 0.9},
    {"step": 15, "eval_return": 0.4},
    {"step": 20, "loss": 0.4, "environment_steps": 1080, "epsilon": 0.8},
    {"step": 20, "eval_return": 0.7},
    {"step": 20, "train_runtime": 3.0},
]


def test_evaluations_lie_where_the_environments_were_by_then():
    # Step 15 is half way from 1040 to 1080; the last one is that of the whole run.
    assert _evaluations(HISTORY, (0.2, 0.7)) == ([0.0, 1060.0, 1080.0], [0.2, 0.4, 0.7])
    assert _evaluations([], (0.2, 0.7)) == ([0.0, 0.0], [0.2, 0.7])


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def width(history: list[dict[str, Any]], path: Path) -> int:
    draw_agent_curves(history, path, evaluated=(0.2, 0.7), before="random", best=0.9)
    return pixels(path).shape[1]


@pytest.mark.parametrize("name", ["epsilon", "temperature", "entropy"])
def test_exploration_has_a_panel_where_it_was_logged(name: str, tmp_path: Path):
    without = [{key: value for key, value in line.items() if key != "epsilon"} for line in HISTORY]
    explored = [line | {name: 0.5} if "loss" in line else line for line in without]
    path = tmp_path / "curves.png"
    assert width(explored, path) == width(HISTORY, path) == width(without, path) * 3 / 2


def test_the_best_possible_return_and_evaluations_are_drawn(tmp_path: Path):
    pictures = []
    for ends, best in (((0.2, 0.7), 0.9), ((0.2, 0.7), None), ((0.3, 0.7), 0.9)):
        draw_agent_curves(HISTORY, tmp_path / "curves.png", evaluated=ends, before="before", best=best)
        pictures.append(pixels(tmp_path / "curves.png"))
    assert all((pictures[0] != other).any() for other in pictures[1:])


def test_a_run_that_hardly_began_is_drawn_too(tmp_path: Path):
    draw_agent_curves([], tmp_path / "curves.png", evaluated=(0.1, 0.1), before="random")
    assert pixels(tmp_path / "curves.png").std() > 0
