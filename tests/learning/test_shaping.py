"""Hints by a potential find a sparse reward sooner, and a misleading hint misleads for a while only."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from mmft.trainers.ppo import PPOTrainer
from rewards import PotentialShaping, ShapedReward
from tests.learning.tasks import LETTER_IDS, LETTERS, colour_rows, make_learner
from tests.zoo.vocabulary import EOS_ID

pytestmark = pytest.mark.learning

STEPS_PER_ROLLOUT = 4
SETTINGS: dict[str, Any] = {
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "num_ppo_epochs": STEPS_PER_ROLLOUT,
    "logging_steps": 1,
    "vf_coef": 1.0,
    "learning_rate": 2e-3,
}
"""Rollouts of 8 pictures and 64 completions. The pictures play no part: what is right is always the same."""
WELL = 0.9
"""The share of right completions at which a policy has learned its word."""
Reward = Callable[..., list[float | None]]


def exactly(word: str) -> Reward:
    """1 for the word and its end, else 0: of random completions one in 9^(letters + 1) finds it."""
    wanted = [LETTER_IDS[LETTERS.index(letter)] for letter in word] + [EOS_ID]

    def exact(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        return [float(ids == wanted) for ids in completion_ids]

    return exact


def begun(word: str) -> Reward:
    """The share of the word's letters that a text begins with."""

    def share(completions: list[str], **columns: Any) -> list[float | None]:
        return [letters_in_common(text, word) / len(word) for text in completions]

    return share


def letters_in_common(text: str, word: str) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(text, word, strict=False))))


def starts_with_c(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    return [float(ids[0] == LETTER_IDS[2]) for ids in completion_ids]


def starts_with_f(completions: list[str], **columns: Any) -> list[float | None]:
    return [float(text.startswith("f")) for text in completions]


class StopWhenLearned(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        control.should_training_stop |= logs.get("reward", 0.0) >= WELL


def learner(folder: Path, rewards: list[Any], seed: int, rollouts: int, **settings: Any) -> PPOTrainer:
    rows = [row for row in colour_rows(16, seed=0) if row["colour"] == "red"]
    settings = SETTINGS | {"kl_coef": 0.0, "seed": seed, "max_steps": rollouts * STEPS_PER_ROLLOUT} | settings
    return make_learner(folder, rewards, rows, rows, **settings)


def logged(trainer: PPOTrainer, name: str) -> list[float]:
    """One number per rollout."""
    return [row[name] for row in trainer.state.log_history if name in row]


def spell(folder: Path, word: str, seed: int, rollouts: int, *, shaped: bool) -> PPOTrainer:
    """A run that is paid for the whole word alone, with hints for its letters or without."""
    hints = [PotentialShaping(begun(word), complete_words=False)] if shaped else []
    # Hints have effect where credit comes from the next few tokens, not from the end of the episode.
    settings = {"lam": 0.5, "max_completion_length": len(word) + 1}
    trainer = learner(folder, [exactly(word), *hints], seed, rollouts, **settings)
    trainer.add_callback(StopWhenLearned())
    trainer.train()
    return trainer


@pytest.mark.parametrize("seed", [1, 2])
def test_a_word_that_chance_never_finds_is_learned_from_hints(seed: int, tmp_path: Path):
    hinted = logged(spell(tmp_path / "hints", "cab", seed, 20, shaped=True), "reward")
    assert hinted[0] == 0.0
    assert hinted[-1] >= WELL
    blind = logged(spell(tmp_path / "none", "cab", seed, len(hinted), shaped=False), "reward")
    assert len(blind) == len(hinted)
    assert max(blind) <= 0.1


@pytest.mark.slow
def test_hints_save_most_of_the_steps_to_a_word_that_chance_does_find(tmp_path: Path):
    """Measured: 9, 7, 7 rollouts with hints, 17, more than 40, 30 without."""
    seeds = [1, 2, 3]
    hinted = [spell(tmp_path / f"hints {seed}", "ca", seed, 40, shaped=True) for seed in seeds]
    blind = [spell(tmp_path / f"none {seed}", "ca", seed, 40, shaped=False) for seed in seeds]
    assert all(logged(trainer, "reward")[-1] >= WELL for trainer in hinted)
    assert sum(logged(trainer, "reward")[-1] >= WELL for trainer in blind) >= 2  # both ways lead to the word
    rollouts = [sum(len(logged(trainer, "reward")) for trainer in trainers) for trainers in (hinted, blind)]
    assert 2 * rollouts[0] < rollouts[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_misleading_potential_does_not_change_where_learning_ends(seed: int, tmp_path: Path):
    """c is worth 1 and f nothing, while f looks twice as good; only a plain bonus for f is believed."""
    settings = {"max_completion_length": 2, "kl_coef": 0.05}
    rewards = [starts_with_c, PotentialShaping(starts_with_f, weight=2.0, complete_words=False)]
    potential = learner(tmp_path / "potential", rewards, seed, 12, **settings)
    potential.train()
    assert statistics.median(logged(potential, "rewards/starts_with_c")[-5:]) >= WELL
    assert statistics.median(logged(potential, "rewards/potential_shaping/potential")[-5:]) <= 0.2
    bonus = learner(
        tmp_path / "bonus", [ShapedReward(starts_with_c, starts_with_f, beta=2.0)], seed, 12, **settings
    )
    bonus.train()
    assert statistics.median(logged(bonus, "rewards/shaped/reward")[-5:]) <= 0.1
    assert statistics.median(logged(bonus, "rewards/shaped/potential")[-5:]) >= WELL
