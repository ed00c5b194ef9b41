"""Actor-critic with every advantage estimator, and PPO without a critic, reach the known best reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmft.trainers.a2c import A2CConfig, A2CTrainer
from tests.learning.tasks import colour_rows, make_learner, name_colour, spell

pytestmark = pytest.mark.learning

A2C: dict[str, Any] = {"trainer_class": A2CTrainer, "config_class": A2CConfig}
SETTINGS: dict[str, Any] = {"num_generations": 8, "per_device_train_batch_size": 64, "kl_coef": 0.0}
"""Rollouts of 8 pictures and 64 completions."""
GROUP: dict[str, Any] = {"advantage_estimator": "group"}


BANDITS: dict[str, dict[str, Any]] = {
    "gae": A2C | {"advantage_estimator": "gae"},
    "td": A2C | {"advantage_estimator": "td"},
    "monte carlo": A2C | {"advantage_estimator": "monte_carlo"},
    "group": A2C | GROUP,
    "ppo group": GROUP | {"num_ppo_epochs": 4},
}


@pytest.mark.parametrize("name", BANDITS)
def test_a_bandit_is_solved_by_looking(name: str, tmp_path: Path):
    """One token answers a picture: 1 for its colour's word, and never more than 0.5 on average blind."""
    trainer = make_learner(
        tmp_path,
        name_colour,
        colour_rows(16, seed=0),
        colour_rows(32, seed=1),  # pictures that training never shows
        max_completion_length=1,
        learning_rate=2e-3,
        max_steps=150,
        **(SETTINGS | BANDITS[name]),
    )
    assert trainer.evaluate()["eval_reward"] <= 0.5
    trainer.train()
    assert trainer.evaluate()["eval_reward"] >= 0.95


TOKEN_TASKS: dict[str, dict[str, Any]] = {
    "a2c": A2C | {"vf_coef": 1.0, "learning_rate": 2e-3},
    "ppo group": GROUP | {"num_ppo_epochs": 4, "learning_rate": 1e-3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKEN_TASKS)
def test_a_word_is_spelled(name: str, tmp_path: Path):
    """Four tokens, paid only when all is said; the optimum is 1."""
    trainer = make_learner(
        tmp_path,
        spell,
        colour_rows(16, seed=0),
        colour_rows(16, seed=1),
        max_completion_length=4,
        max_steps=240,
        entropy_coef=0.01,
        **(SETTINGS | TOKEN_TASKS[name]),
    )
    assert trainer.evaluate()["eval_reward"] < 0.3
    trainer.train()
    assert trainer.evaluate()["eval_reward"] >= 0.95
