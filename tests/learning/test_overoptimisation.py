"""A policy finds where its reward model is wrong; the price of uncertainty keeps it where people have judged.

People like the letter a, up to three of it; more of it they dislike, but nobody has ever said so: the
untrained policy hardly says more than three, and what it says is all that was rated. The reward model learns
"the more the better", which is right on everything it has seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.learned_reward import LearnedReward
from mmft.models.backbone import Backbone, make_backbone
from mmft.models.reward_model import RewardEstimate
from mmft.trainers.ppo import PPOConfig, PPOTrainer
from mmft.trainers.reward_model import RewardModelConfig, RewardModelTrainer
from tests import zoo
from tests.learning.tasks import LETTER_IDS, colour_rows
from tests.zoo.vocabulary import EOS_ID, VOCAB_SIZE

pytestmark = [pytest.mark.learning, pytest.mark.slow]

MOST = 3
LENGTH = 8
ROW = colour_rows(2, seed=1)[0]
COMMON: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}


def liking(text: str) -> float:
    """What people would say: 0, 1, 2, 3 for as many a's, then 1, -1, -3, -5 and -7 for eight of them."""
    count = text.count("a")
    return float(count if count <= MOST else MOST - 2 * (count - MOST))


def true_reward(completions: list[str], **columns: Any) -> list[float | None]:
    """Reported, never optimised."""
    return [liking(text) for text in completions]


def policy() -> Backbone:
    """A LLaVA of random weights that says letters and the end."""
    backbone = make_backbone(zoo.build_model("llava", seed=1), zoo.build_processor("llava"))
    backbone.forbidden_ids = frozenset(range(VOCAB_SIZE)) - {*LETTER_IDS, EOS_ID}
    return backbone


def make_learner(folder: Path, reward: Any, seed: int, eval_rows: int) -> PPOTrainer:
    args = PPOConfig(
        output_dir=str(folder),
        max_completion_length=LENGTH,
        num_generations=8,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        num_ppo_epochs=4,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        max_steps=60,
        kl_coef=0.0,
        vf_coef=1.0,
        eval_temperature=1.0,
        seed=seed,
        **COMMON,
    )
    actor_critic = VLMActorCritic(policy())
    rows = [ROW] * 8
    return PPOTrainer(actor_critic, reward, args, rows, [ROW] * eval_rows, eval_funcs=[true_reward])


def rated_texts(folder: Path, seed: int) -> list[str]:
    """What the untrained policy says, without the few texts of more than three a's."""
    trainer = make_learner(folder, true_reward, seed, eval_rows=400)
    trainer.evaluate()
    texts = [sample["completion"] for sample in trainer.eval_samples]
    assert len({text.count("a") for text in texts}) > MOST
    rated = [text for text in texts if text.count("a") <= MOST]
    assert len(rated) > 0.8 * len(texts), "what was never rated is rare before training"
    return rated


def train_reward_model(folder: Path, texts: list[str], seed: int) -> None:
    """From ratings without noise: whatever it gets wrong, it has not seen."""
    args = RewardModelConfig(
        output_dir=str(folder),
        loss_type="mse",
        dropout=0.3,
        head_width=64,
        max_completion_length=LENGTH + 1,
        learning_rate=3e-3,
        max_steps=250,
        per_device_train_batch_size=32,
        seed=seed,
        **COMMON,
    )
    backbone = make_backbone(zoo.build_model("llava", seed=seed + 50), zoo.build_processor("llava"))
    rows = [ROW | {"completion": text, "rating": liking(text)} for text in texts]
    trainer = RewardModelTrainer(backbone, args, rows)
    trainer.train()
    trainer.save_model(str(folder))


def judged(reward: LearnedReward, texts: list[str]) -> RewardEstimate:
    """What the reward model makes of texts about the one picture."""
    return reward.estimate(["?"] * len(texts), texts, image=[ROW["image"]] * len(texts))


def after_ppo(folder: Path, reward: LearnedReward, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Rewards of held-out samples before and after training, the learned ones and the true one."""
    trainer = make_learner(folder, reward, seed, eval_rows=64)
    before = trainer.evaluate()
    trainer.train()
    return before, trainer.evaluate()


@pytest.mark.parametrize("seed", [1, 4])
def test_the_price_of_uncertainty_holds_over_optimisation_back(seed: int, tmp_path: Path):
    texts = rated_texts(tmp_path / "untrained", seed)
    texts, held_out = texts[:280], texts[280:]
    train_reward_model(tmp_path / "rm", texts, seed)
    mean = LearnedReward(tmp_path / "rm", mc_samples=32)

    # Right on texts like those it was trained on ...
    known = judged(mean, held_out)
    assert stats.pearsonr(known.mean.tolist(), [liking(text) for text in held_out]).statistic > 0.9
    # ... wrong beyond, and less certain there than in the midst of what it knows.
    beyond = judged(mean, ["a" * count for count in (6, 7, 8)])
    midst = judged(mean, [text for text in held_out if text.count("a") == 2])
    assert float(beyond.mean.min()) > 2
    assert float(beyond.epistemic.min()) > 1.5 * float(midst.epistemic.median())

    before, trusting = after_ppo(tmp_path / "mean", mean, seed)
    assert before["eval_rewards/true_reward"] > 1
    assert trusting["eval_reward"] > before["eval_reward"] + 0.8, "the learned reward rises"
    assert trusting["eval_rewards/true_reward"] < before["eval_rewards/true_reward"] - 2, "the true one falls"

    careful_reward = LearnedReward(tmp_path / "rm", penalty=10.0, uncertainty="epistemic", mc_samples=32)
    before, careful = after_ppo(tmp_path / "careful", careful_reward, seed)
    assert careful["eval_rewards/true_reward"] > before["eval_rewards/true_reward"] + 0.2
    assert careful["eval_rewards/true_reward"] > trusting["eval_rewards/true_reward"] + 3
