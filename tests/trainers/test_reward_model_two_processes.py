"""Two processes train and evaluate a reward model as one does with the same global batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainers.reward_support import step_rows, trained_weights
from tests.trainers.test_two_processes import launch
from tests.trainers.two_processes_reward import SCENARIOS, scenario

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one launch, shared by the tests."""
    path = tmp_path_factory.mktemp("two")
    launch("two_processes_reward.py", path)
    return path


def result(folder: Path, name: str, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    weights = load_file(folder / name / f"weights_{number}.safetensors")
    return weights, json.loads((folder / name / f"result_{number}.json").read_text())


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_make_the_update_and_the_evaluation_of_one(name: str, folder: Path, tmp_path: Path):
    alone = scenario(name, tmp_path, 1)
    alone.train()
    expected = trained_weights(alone)
    metrics = alone.evaluate()
    for number in (0, 1):
        weights, other = result(folder, name, number)
        assert weights.keys() == expected.keys()
        for key, weight in expected.items():
            torch.testing.assert_close(weights[key], weight, rtol=0, atol=1e-5, msg=key)
        assert other["rows"] == list(range(6))
        for key, value in metrics.items():
            assert other["metrics"][key] == pytest.approx(value, abs=2e-4), key
        for mine, theirs in zip(other["steps"], step_rows(alone), strict=True):
            assert mine == pytest.approx(theirs, abs=2e-4)
