"""Two processes weigh the samples of both, train as one does with the same global batch, and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainers.support import moved, of_the_update, step_rows, trained_weights, without_cache
from tests.trainers.test_two_processes import FSDP, launch
from tests.trainers.two_processes_rwl import SCENARIOS, scenario

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one launch, shared by the tests."""
    path = tmp_path_factory.mktemp("two")
    launch("two_processes_rwl.py", path)
    return path


def result(folder: Path, name: str, number: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    weights = load_file(folder / name / f"weights_{number}.safetensors")
    return weights, json.loads((folder / name / f"steps_{number}.json").read_text())


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_make_the_update_of_one(name: str, folder: Path, tmp_path: Path):
    alone = scenario(name, tmp_path, 1)
    start = trained_weights(alone)
    alone.train()
    expected = trained_weights(alone)
    assert moved(start, expected) == start.keys()
    for number in (0, 1):
        weights, steps = result(folder, name, number)
        for key, weight in expected.items():
            torch.testing.assert_close(weights[key], weight, rtol=0, atol=1e-5, msg=key)
        assert len(steps) == len(step_rows(alone))
        for mine, theirs in zip(of_the_update(steps), of_the_update(step_rows(alone)), strict=True):
            assert mine == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("number", [0, 1])
def test_two_processes_resume_with_the_same_bits(name: str, number: int, folder: Path):
    weights, steps = result(folder, name, number)
    again, resumed = result(folder, f"{name} again", number)
    assert moved(weights, again) == set()
    assert without_cache(steps) == without_cache(resumed)


def test_a_rollout_that_teaches_nothing_is_counted_once_for_all_processes(folder: Path):
    steps = json.loads((folder / "unpaid_0.json").read_text())
    assert [step.get("weights/zero_rollouts") for step in steps] == [1.0, None, 1.0, None, 1.0, None]


def test_a_negative_reward_on_one_process_stops_both(folder: Path):
    told = {(folder / f"refused_{number}.txt").read_text() for number in (0, 1)}
    assert len(told) == 1
    assert "row 3 of 'train' has the reward -0.5" in told.pop()


def test_sharded_weights_make_the_offline_update_of_one_process(tmp_path: Path):
    """Of the chunks of a process several share a prompt, on the other process others do."""
    launch("two_processes_rwl_sharded.py", tmp_path, **FSDP)
    alone = scenario("offline", tmp_path / "alone", 1)
    alone.train()
    alone.save_model(str(tmp_path / "alone"))
    expected = load_file(tmp_path / "alone" / "adapter_model.safetensors")
    for run in ("whole", "resumed"):
        actual = load_file(tmp_path / run / "adapter_model.safetensors")
        for key, weight in expected.items():
            torch.testing.assert_close(actual[key], weight, rtol=0, atol=1e-5, msg=f"{run}: {key}")
    steps = json.loads((tmp_path / "steps.json").read_text())
    for mine, theirs in zip(of_the_update(steps), of_the_update(step_rows(alone)), strict=True):
        assert mine == pytest.approx(theirs, abs=2e-4)
