"""Held-out rows: greedy by default, or drawn with noise that belongs to the row."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmft.errors import ConfigError
from mmft.trainers.ppo import PPOConfig, PPOTrainer
from tests.trainers.support import make_rows, make_trainer


def completions(trainer: PPOTrainer) -> list[str]:
    trainer.evaluate()
    return [sample["completion"] for sample in trainer.eval_samples]


def test_sampled_evaluations_of_one_policy_are_the_same_and_not_greedy(tmp_path: Path) -> None:
    rows = make_rows(5)
    sampled = make_trainer(tmp_path, eval_rows=rows, eval_temperature=1.0)
    greedy = make_trainer(tmp_path, eval_rows=rows)
    drawn = completions(sampled)
    assert drawn == completions(sampled)
    assert drawn != completions(greedy)
    assert len(set(drawn)) == len(rows)


def test_sampled_evaluation_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    rows = make_rows(5)
    settings = {"eval_rows": rows, "eval_temperature": 1.0}
    whole = make_trainer(tmp_path, per_device_eval_batch_size=8, **settings)
    parts = make_trainer(tmp_path, per_device_eval_batch_size=2, **settings)
    assert completions(whole) == completions(parts)


def test_a_negative_evaluation_temperature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`eval_temperature` must be >= 0; got -1"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, eval_temperature=-1)
