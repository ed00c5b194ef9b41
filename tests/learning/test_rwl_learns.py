"""Reward-weighted likelihood reaches the known best answers, by its own samples and from a fixed data set."""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from mmft.trainers.reward_weighted import RewardWeightedConfig, RewardWeightedTrainer
from tests.learning.tasks import LETTERS, colour_rows, make_learner, name_colour, spell

pytestmark = pytest.mark.learning

SETTINGS: dict[str, Any] = {
    "trainer_class": RewardWeightedTrainer,
    "config_class": RewardWeightedConfig,
    "num_generations": 8,
    "per_device_train_batch_size": 64,
}
"""Rollouts of 8 pictures and 64 completions, one optimizer step each."""


def rewards(trainer: RewardWeightedTrainer) -> list[float]:
    return [row["reward"] for row in trainer.state.log_history if "reward" in row]


@pytest.mark.parametrize("weighting", ["exponential", "top_fraction"])
def test_a_policy_learns_to_name_what_it_sees(weighting: str, tmp_path: Path):
    trainer = make_learner(
        tmp_path,
        name_colour,
        colour_rows(16, seed=0),
        colour_rows(32, seed=1),
        weighting=weighting,
        max_completion_length=2,
        learning_rate=2e-3,
        max_steps=80,
        **SETTINGS,
    )
    assert trainer.evaluate()["eval_reward"] <= 0.5
    trainer.train()
    assert trainer.evaluate()["eval_reward"] >= 0.95
    assert statistics.mean(rewards(trainer)[-3:]) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["exponential", "top_fraction"])
def test_a_policy_learns_to_spell(weighting: str, tmp_path: Path):
    trainer = make_learner(
        tmp_path,
        spell,
        colour_rows(16, seed=0),
        colour_rows(32, seed=1),
        weighting=weighting,
        max_completion_length=4,
        learning_rate=1e-3,
        max_steps=100,
        **SETTINGS,
    )
    assert trainer.evaluate()["eval_reward"] < 0.3
    trainer.train()
    assert trainer.evaluate()["eval_reward"] >= 0.95
    assert statistics.mean(rewards(trainer)[-3:]) >= 0.95


def answered_rows() -> list[dict[str, Any]]:
    """Of 8 answers to each picture 3 are the same wrong one, 4 are guesses and 1 is right."""
    chance = random.Random(0)
    right = {"red": "c", "blue": "f"}
    return [
        row | {"completion": letter, "reward": float(letter == right[row["colour"]])}
        for row in colour_rows(16, seed=0)
        for letter in ["a"] * 3 + chance.choices(LETTERS, k=4) + [right[row["colour"]]]
    ]


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        ({}, 0.95, 1.0),
        ({"weighting": "reward"}, 0.95, 1.0),
        ({"weighting": "top_fraction", "top_fraction": 0.1}, 0.95, 1.0),
        ({"weighting": "top_fraction", "top_fraction": 1.0}, 0.0, 0.25),
    ],
    ids=["exponential", "reward", "top_fraction", "plain likelihood"],
)
def test_the_best_answers_of_a_data_set_are_learned(
    settings: dict[str, Any], least: float, most: float, tmp_path: Path
):
    trainer = make_learner(
        tmp_path,
        name_colour,
        answered_rows(),
        colour_rows(32, seed=1),
        offline=True,
        max_completion_length=2,
        learning_rate=2e-3,
        max_steps=40,
        **(SETTINGS | settings),
    )
    assert trainer.evaluate()["eval_reward"] <= 0.5
    trainer.train()
    assert least <= trainer.evaluate()["eval_reward"] <= most
