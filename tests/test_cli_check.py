"""`mmft check` and the reward protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmft.cli import main
from tests.reference.rewards import CALLS
from tests.test_cli import SETTINGS


def check(folder: Path, settings: dict[str, Any]) -> int:
    path = folder / "recipe.yaml"
    names = {"model_name_or_path": "mmft/tiny-captioner", "output_dir": str(folder), "reward_weights": None}
    path.write_text(yaml.safe_dump(SETTINGS | names | settings))
    return main(["check", "--config", str(path)])


def test_a_reward_that_breaks_the_protocol_is_remarked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rewards = ["tests.reference.rewards:favours_the_first", "captioning"]
    assert check(tmp_path, {"reward_funcs": rewards}) == 0, "this run's own data may never show it"
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: reward")]
    assert notes
    assert all("'favours_the_first'" in note for note in notes)


def test_rewards_that_wait_or_learn_are_not_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rewards = [
        "tests.reference.rewards:counted",
        {"name": "composite", "scaling": "z-score", "parts": {"a": "bleu"}},
    ]
    assert check(tmp_path, {"reward_funcs": [*rewards, "cider_d"]}) == 0
    assert "note: reward" not in capsys.readouterr().out
    assert CALLS == [2], "once for the two completions of the first row"
