"""Rewards for single tokens in PPO: beside the KL and the score, kept through checkpoints, training only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft._masking import last_valid
from mmft.resolve import resolve_rewards
from mmft.trainers.experience import Experience
from mmft.trainers.ppo import PPOTrainer
from rewards import CompositeReward, PotentialShaping
from tests.trainers.support import (
    make_rows,
    make_trainer,
    moved,
    random_experience,
    step_rows,
    token_reward,
    trained_weights,
    without_cache,
)

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 8}
"""Rollouts end at steps 4 and 8."""
WEIGHT, OUTER_WEIGHT = 0.3, 2.0


def length(completions: list[str], number: list[int], **columns: Any) -> list[float | None]:
    """A potential that depends on the row, and is not 0 where nothing has been said yet."""
    return [1.0 + len(text) * (1 + row % 2) for text, row in zip(completions, number, strict=True)]


def shaping() -> PotentialShaping:
    return PotentialShaping(length, weight=WEIGHT, complete_words=False)


def shaped_trainer(folder: Path, **settings: Any) -> PPOTrainer:
    """Its policy differs from the reference, so that the KL is not 0."""
    trainer = make_trainer(
        folder, rewards=[token_reward, shaping()], reward_weights=[1.0, OUTER_WEIGHT], **settings
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainer.actor_critic.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return trainer


def worked_by_hand(trainer: PPOTrainer, experience: Experience) -> list[list[float]]:
    """Per completion r_t = -kl_coef * KL_t + F_t + [t is last] * score, from ids and log-probs alone."""
    args, tokenizer = trainer.args, trainer.actor_critic.backbone.processor.tokenizer
    rewards = []
    for n, count in enumerate(experience.completions.lengths.tolist()):
        ids = experience.completions.ids[n, :count].tolist()
        row = experience.rows[n // trainer.args.num_generations]
        (score,) = token_reward([ids], number=[row])
        texts = [tokenizer.decode(ids[:t], skip_special_tokens=True) for t in range(count)]
        phi = [WEIGHT * (1 + len(text) * (1 + row % 2)) for text in texts] + [0.0]
        kl = (experience.old_logps[n] - experience.ref_logps[n]).tolist()
        shaping = [OUTER_WEIGHT * (args.gamma * phi[t + 1] - phi[t]) for t in range(count)]
        at_end = [0.0] * (count - 1) + [score]
        rewards.append(
            [f + s - args.kl_coef * k for f, s, k in zip(shaping, at_end, kl[:count], strict=True)]
        )
    return rewards


def returns_to_go(rewards: list[float], discount: float) -> list[float]:
    totals = [0.0]
    for reward in reversed(rewards):
        totals.append(reward + discount * totals[-1])
    return totals[:0:-1]


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_the_reward_of_a_token_is_kl_and_score_and_shaping(gamma: float, tmp_path: Path):
    trainer = shaped_trainer(
        tmp_path, kl_coef=0.2, gamma=gamma, lam=1.0
    )  # lam = 1: returns are sums of rewards
    experience = trainer.collect(0)
    assert (experience.old_logps - experience.ref_logps).abs().max() > 0.01
    assert len(set(experience.completions.lengths.tolist())) > 1, "no padding to look at"
    for n, rewards in enumerate(worked_by_hand(trainer, experience)):
        expected = torch.tensor(returns_to_go(rewards, gamma))
        torch.testing.assert_close(experience.returns[n, : len(rewards)], expected, rtol=1e-4, atol=1e-5)


def test_padding_is_paid_nothing(tmp_path: Path):
    experience = shaped_trainer(tmp_path).collect(0)
    mask = experience.completions.mask
    assert not mask.all()
    assert (experience.token_rewards[~mask] == 0).all()
    assert (experience.token_rewards[last_valid(mask)] < 0).all()  # where the potential is paid back


def test_shaping_is_no_part_of_the_score(tmp_path: Path):
    trainer = shaped_trainer(tmp_path, eval_rows=make_rows(4))
    experience = trainer.collect(0)
    ids = [
        row[row_mask].tolist()
        for row, row_mask in zip(experience.completions.ids, experience.completions.mask, strict=True)
    ]
    rows = [row for row in experience.rows for _ in range(trainer.args.num_generations)]
    assert experience.scores.tolist() == pytest.approx(token_reward(ids, number=rows))
    logged = trainer.metric_log.flush()
    assert logged["reward"] == pytest.approx(logged["rewards/token_reward"])
    sums = experience.token_rewards.sum(1) / OUTER_WEIGHT  # each reward is logged without its weight
    assert logged["rewards/potential_shaping"] == pytest.approx(sums.mean().item(), rel=1e-5)
    assert logged["rewards/potential_shaping/potential"] > -sums.mean().item() / 2


def test_undiscounted_shaping_sums_to_minus_the_first_potential(tmp_path: Path):
    trainer = shaped_trainer(tmp_path, gamma=1.0)
    sums = trainer.collect(0).token_rewards.sum(1)
    torch.testing.assert_close(sums, torch.full_like(sums, -OUTER_WEIGHT * WEIGHT))


def test_held_out_completions_are_scored_without_shaping(tmp_path: Path):
    metrics = shaped_trainer(tmp_path, eval_rows=make_rows(4)).evaluate()
    assert metrics["eval_reward"] == pytest.approx(metrics["eval_rewards/token_reward"])
    assert metrics["eval_rewards/potential_shaping"] == pytest.approx(-WEIGHT)  # the sum, as a plain reward


# Targets


def with_token_rewards(experience: Experience, token_rewards: Tensor) -> Experience:
    return dataclasses.replace(experience, token_rewards=token_rewards)


def test_what_stands_at_padding_is_never_read(tmp_path: Path):
    trainer, experience = make_trainer(tmp_path), random_experience(dense=True)
    spoilt = torch.where(experience.completions.mask, experience.token_rewards, torch.nan)
    clean, dirty = (
        trainer.add_targets(experience),
        trainer.add_targets(with_token_rewards(experience, spoilt)),
    )
    assert torch.equal(clean.advantages, dirty.advantages)
    mask = experience.train_mask
    assert torch.equal(clean.returns[mask], dirty.returns[mask])


def test_a_completion_that_does_not_train_is_not_paid(tmp_path: Path):
    trainer, experience = make_trainer(tmp_path), random_experience(dense=True)
    experience.train_mask[2] = False
    paid = experience.token_rewards.clone()
    paid[2] += 100 * experience.completions.mask[2]
    before = trainer.add_targets(experience)
    after = trainer.add_targets(with_token_rewards(experience, paid))
    assert torch.equal(before.advantages, after.advantages)
    paid[3] += 100 * experience.completions.mask[3]  # its sibling trains
    assert not torch.equal(
        before.advantages, trainer.add_targets(with_token_rewards(experience, paid)).advantages
    )


def test_without_dense_rewards_nothing_is_stored_for_tokens(tmp_path: Path):
    assert make_trainer(tmp_path).collect(0).token_rewards is None


# Runs


def test_a_resumed_run_keeps_what_tokens_were_paid(tmp_path: Path):
    def make(folder: str) -> PPOTrainer:
        return make_trainer(tmp_path / folder, rewards=[token_reward, shaping()], gamma=0.9, **SAVING)

    whole, unshaped = make("whole"), make_trainer(tmp_path / "unshaped", gamma=0.9, **SAVING)
    whole.train()
    unshaped.train()
    assert moved(trained_weights(unshaped), trained_weights(whole)), "shaping had no effect"
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert moved(trained_weights(resumed), trained_weights(whole)) == set()
    assert without_cache(step_rows(resumed)) == without_cache(step_rows(whole))
    assert torch.equal(resumed.experience.token_rewards, whole.experience.token_rewards)


def test_rewards_of_rewards_train_by_name(tmp_path: Path):
    rewards, names = resolve_rewards([
        {
            "name": "composite",
            "scaling": {"ids": "z-score"},
            "parts": {
                "ids": {"name": "tests.trainers.support:token_reward", "weight": 0.5},
                "brief": {"name": "length_penalty", "target_length": 2},
            },
        },
        {"name": "potential_shaping", "potential": {"name": "length_penalty", "target_length": 3},
         "weight": 0.5},
        {"name": "shaped", "reward": "tests.trainers.support:token_reward",
         "potential": {"name": "length_penalty", "target_length": 2}, "beta": 2.0},
    ])  # fmt: skip
    assert names == ["composite", "potential_shaping", "shaped"]
    composite, potential_shaping, shaped = rewards
    assert isinstance(composite, CompositeReward)
    assert composite.weights == {"ids": 0.5, "brief": 1.0}
    assert (potential_shaping.weight, shaped.beta) == (0.5, 2.0)
    trainer = make_trainer(tmp_path, rewards=rewards, max_steps=4)
    trainer.train()
    assert composite.scales["ids"].training.count == 8  # one rollout of 4 prompts with 2 completions
    row = step_rows(trainer)[0]
    for name in ("composite/ids", "composite/ids/scaled", "composite/brief", "potential_shaping/potential",
                 "shaped/reward", "shaped/potential"):  # fmt: skip
        assert f"rewards/{name}" in row
    assert row["rewards/composite/ids/scaled"] == pytest.approx(0, abs=1e-6)
    assert row["reward"] == pytest.approx(row["rewards/composite"] + row["rewards/shaped"])
