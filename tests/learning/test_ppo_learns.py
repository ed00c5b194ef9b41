"""PPO reaches the known best reward: by looking at the picture, and by finding which of its words paid."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from mmft.trainers.ppo import PPOTrainer
from tests.learning.tasks import colour_rows, make_learner, name_colour, spell

pytestmark = pytest.mark.learning

SETTINGS: dict[str, Any] = {
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "num_ppo_epochs": 4,
    "vf_coef": 1.0,
}
"""Rollouts of 8 pictures and 64 completions, 4 optimizer steps each."""


def logged(trainer: PPOTrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def with_other_pictures(rows: list[dict[str, Any]], *, every: int) -> list[dict[str, Any]]:
    """Every so many pairs of a red and a blue row exchange their pictures and keep their answers."""
    pictures = [row["image"] for row in rows]
    for first in range(0, len(rows), 2 * every):
        pictures[first], pictures[first + 1] = pictures[first + 1], pictures[first]
    return [row | {"image": image} for row, image in zip(rows, pictures, strict=True)]


@pytest.mark.parametrize("seed", [1, 4])
def test_a_policy_learns_to_name_what_it_sees(seed: int, tmp_path: Path):
    rows = colour_rows(32, seed=1)  # pictures that training never shows
    trainer = make_learner(
        tmp_path,
        name_colour,
        colour_rows(16, seed=0),
        rows,
        max_completion_length=2,
        learning_rate=2e-3,
        max_steps=120,
        kl_coef=0.0,
        seed=seed,
        **SETTINGS,
    )
    assert trainer.evaluate()["eval_reward"] <= 0.5
    trainer.train()
    assert trainer.evaluate()["eval_reward"] >= 0.95
    assert statistics.mean(logged(trainer, "reward")[-3:]) >= 0.95
    # The pictures are what it answers to: half of them exchanged leave half of the reward, all of them none.
    assert trainer.evaluate(with_other_pictures(rows, every=2))["eval_reward"] == pytest.approx(0.5, abs=0.1)
    assert trainer.evaluate(with_other_pictures(rows, every=1))["eval_reward"] <= 0.05


@pytest.mark.slow
def test_credit_finds_the_tokens_that_paid(tmp_path: Path):
    trainer = make_learner(
        tmp_path,
        spell,
        colour_rows(16, seed=0),
        colour_rows(16, seed=1),
        max_completion_length=4,
        learning_rate=1e-3,
        max_steps=240,
        kl_coef=0.02,  # the random reference keeps the policy trying
        cliprange_value=0.5,
        **SETTINGS,
    )
    assert trainer.evaluate()["eval_reward"] < 0.3
    trainer.train()
    assert trainer.evaluate()["eval_reward"] >= 0.95
    assert statistics.mean(logged(trainer, "completions/no_eos_share")[-5:]) <= 0.05
    explained = logged(trainer, "explained_variance")
    assert explained[0] == pytest.approx(0, abs=0.01)  # a critic that says 0 explains nothing
    assert statistics.mean(explained[:5]) < 0.2
    assert statistics.median(explained[-15:]) > 0.6
