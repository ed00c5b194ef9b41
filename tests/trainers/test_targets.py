"""Advantages, returns and the loss of PPO against loops over single tokens, and TRL's recorded runs."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft._masking import masked_whiten
from mmft.engine.packing import Completions
from mmft.engine.scoring import Scores
from mmft.errors import ConfigError
from mmft.trainers.experience import Experience
from mmft.trainers.ppo import PPOTrainer
from tests.golden.load import TRL_RUNS, golden, tensors
from tests.trainers.support import make_trainer, random_experience

DEFAULTS: dict[str, Any] = {
    "kl_coef": 0.05, "kl_estimator": "k1", "cliprange": 0.2, "vf_coef": 0.1, "cliprange_value": 0.2,
    "gamma": 1.0, "lam": 0.95, "whiten_rewards": False, "missing_eos_penalty": None,
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {},
    {"kl_coef": 0.3, "kl_estimator": "k3", "gamma": 0.9, "lam": 0.7},
    {"whiten_rewards": True, "lam": 1.0},
    {"missing_eos_penalty": 1.5, "gamma": 0.8, "whiten_rewards": True},
    {"vf_coef": 2.0, "cliprange": 0.05, "cliprange_value": 0.01, "lam": 0.0},
]


@pytest.fixture(scope="module")
def shared_trainer(tmp_path_factory: pytest.TempPathFactory) -> PPOTrainer:
    return make_trainer(tmp_path_factory.mktemp("targets"))


@pytest.fixture
def trainer(shared_trainer: PPOTrainer) -> PPOTrainer:
    shared_trainer.metric_log.flush()
    return configured(shared_trainer, {})


def configured(trainer: PPOTrainer, settings: dict[str, Any]) -> PPOTrainer:
    for name, value in (DEFAULTS | settings).items():
        setattr(trainer.args, name, value)
    return trainer


def unjudged(experience: Experience, samples: list[int]) -> Experience:
    scores, mask = experience.scores.clone(), experience.train_mask.clone()
    scores[samples], mask[samples] = torch.nan, False
    return dataclasses.replace(experience, scores=scores, train_mask=mask)


# One token at a time. A place is (sample, token).


def slow_rewards(experience: Experience, args: Any) -> dict[tuple[int, int], float]:
    rewards = {}
    for n, length in enumerate(experience.completions.lengths.tolist()):
        score = experience.scores[n].item()
        if math.isnan(score):
            continue
        if args.missing_eos_penalty is not None and not experience.ended[n]:
            score -= args.missing_eos_penalty
        for t in range(length):
            difference = (experience.old_logps[n, t] - experience.ref_logps[n, t]).item()
            kl = difference if args.kl_estimator == "k1" else math.exp(-difference) - 1 + difference
            rewards[n, t] = -args.kl_coef * kl + (score if t == length - 1 else 0)
    if args.whiten_rewards:
        mean, var = statistics.mean(rewards.values()), statistics.variance(rewards.values())
        rewards = {place: (r - mean) / math.sqrt(var + 1e-8) + mean for place, r in rewards.items()}
    return rewards


def slow_targets(experience: Experience, args: Any) -> tuple[dict[Any, float], dict[Any, float]]:
    """Whitened advantages and returns by place."""
    rewards, advantages, returns = slow_rewards(experience, args), {}, {}
    for n, t in sorted(rewards, reverse=True):
        value = experience.values[n, t].item()
        following = experience.values[n, t + 1].item() if (n, t + 1) in rewards else 0.0
        delta = rewards[n, t] + args.gamma * following - value
        advantages[n, t] = delta + args.gamma * args.lam * advantages.get((n, t + 1), 0.0)
        returns[n, t] = advantages[n, t] + value
    mean, var = statistics.mean(advantages.values()), statistics.variance(advantages.values())
    whitened = {place: (a - mean) / math.sqrt(var + 1e-8) for place, a in advantages.items()}
    return whitened, returns


def slow_loss(experience: Experience, scores: Scores, args: Any, num_tokens: int) -> float:
    total, advantages, returns = 0.0, *slow_targets(experience, args)
    for place in advantages:
        ratio = math.exp((scores.logps[place] - experience.old_logps[place]).item())
        clipped = min(max(ratio, 1 - args.cliprange), 1 + args.cliprange)
        total -= min(ratio * advantages[place], clipped * advantages[place])
        value, old = scores.values[place].item(), experience.values[place].item()
        held = min(max(value, old - args.cliprange_value), old + args.cliprange_value)
        error = max((value - returns[place]) ** 2, (held - returns[place]) ** 2)
        total += args.vf_coef * 0.5 * error
    return total / num_tokens


def spread(places: dict[Any, float], like: Tensor) -> Tensor:
    """The numbers at their places, 0 elsewhere."""
    full = torch.zeros_like(like)
    for place, number in places.items():
        full[place] = number
    return full


def current_scores(experience: Experience) -> Scores:
    """The policy and the critic some updates later."""
    generator = torch.Generator().manual_seed(5)
    shape = experience.old_logps.shape
    noise = [0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    logps, values = experience.old_logps + noise[0], experience.values + noise[1]
    return Scores(logps.requires_grad_(), torch.zeros(shape), values.requires_grad_())


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("without", [[], [1, 4]])
def test_targets_equal_a_loop_over_tokens(trainer: PPOTrainer, settings: dict[str, Any], without: list[int]):
    configured(trainer, settings)
    experience = unjudged(random_experience(), without)
    targets = trainer.add_targets(experience)
    advantages, returns = slow_targets(experience, trainer.args)
    judged = experience.train_mask
    torch.testing.assert_close(targets.advantages, spread(advantages, experience.values))
    torch.testing.assert_close(targets.returns[judged], spread(returns, experience.values)[judged])


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("without", [[], [1, 4]])
def test_the_loss_equals_a_loop_over_tokens(
    trainer: PPOTrainer, settings: dict[str, Any], without: list[int]
):
    configured(trainer, settings)
    experience = unjudged(random_experience(), without)
    targets, scores = trainer.add_targets(experience), current_scores(experience)
    loss = trainer.compute_policy_loss(scores, targets, torch.tensor(40.0))
    assert loss.item() == pytest.approx(slow_loss(experience, scores, trainer.args, 40), rel=1e-6)


def test_micro_batches_add_up_to_the_batch(trainer: PPOTrainer):
    targets = trainer.add_targets(random_experience())
    scores, num_tokens = current_scores(targets), torch.tensor(21.0)
    whole = trainer.compute_policy_loss(scores, targets, num_tokens)
    parts = []
    for group in range(3):
        part = targets.take([group])
        width, samples = part.old_logps.shape[1], slice(2 * group, 2 * group + 2)
        logps, values = scores.logps[samples, :width], scores.values[samples, :width]
        parts.append(trainer.compute_policy_loss(Scores(logps, logps, values), part, num_tokens))
    torch.testing.assert_close(sum(parts), whole)


def test_advantages_are_whitened_over_the_rollout(trainer: PPOTrainer):
    targets = trainer.add_targets(random_experience())
    valid = targets.advantages[targets.train_mask]
    assert valid.mean().item() == pytest.approx(0, abs=1e-6)
    assert valid.std().item() == pytest.approx(1, abs=1e-6)


def test_statistics_are_those_of_all_processes(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch):
    """With a twin process that holds the same rollout nothing changes but the counts."""
    configured(trainer, {"whiten_rewards": True})
    sums: list[Tensor] = []

    def twice(tensor: Tensor) -> Tensor:
        sums.append(tensor)
        return 2 * tensor

    alone = trainer.add_targets(random_experience())
    monkeypatch.setattr(trainer, "_sum_over_processes", twice)
    together = trainer.add_targets(random_experience())
    n = int(alone.train_mask.sum())
    # Unbiased variances of n and of 2n numbers differ by this factor, in rewards and in advantages.
    assert len(sums) == 8  # mean and variance of rewards, returns, residuals and advantages
    assert not torch.equal(alone.returns, together.returns)
    valid = together.advantages[together.train_mask]
    assert (valid.square().sum() / (n - 0.5)).item() == pytest.approx(1, abs=1e-5)


def test_metrics_tell_what_the_update_did(trainer: PPOTrainer):
    configured(trainer, {"cliprange": 0.1, "cliprange_value": 0.05})
    targets = trainer.add_targets(unjudged(random_experience(), [2]))
    scores = current_scores(targets)
    loss = trainer.compute_policy_loss(scores, targets, torch.tensor(50.0))
    logged, mask = trainer.metric_log.flush(), targets.train_mask
    tokens = int(mask.sum())
    log_ratio = (scores.logps - targets.old_logps)[mask].detach()
    ratio, advantages = log_ratio.exp(), targets.advantages[mask]
    clipped = ((ratio > 1.1) & (advantages > 0)) | ((ratio < 0.9) & (advantages < 0))
    assert logged["clip_fraction"] == pytest.approx(clipped.double().mean().item())
    assert logged["approx_kl"] == pytest.approx((ratio - 1 - log_ratio).mean().item())
    together = logged["policy_loss"] + trainer.args.vf_coef * logged["value_loss"]
    assert together * tokens / 50 == pytest.approx(loss.item())
    assert 0 < logged["value_clip_fraction"] < 1
    residual = (targets.returns - targets.values)[mask]
    expected = 1 - residual.var() / targets.returns[mask].var()
    assert logged["explained_variance"] == pytest.approx(expected.item())
    kl = ((targets.old_logps - targets.ref_logps) * targets.completions.mask).sum(1)
    assert logged["kl"] == pytest.approx(kl.mean().item())


def test_without_a_reference_the_reward_is_the_score(trainer: PPOTrainer):
    experience = random_experience()
    same = dataclasses.replace(experience, ref_logps=experience.old_logps)
    none = dataclasses.replace(experience, ref_logps=None)
    torch.testing.assert_close(trainer.add_targets(none).returns, trainer.add_targets(same).returns)
    trainer.metric_log.flush()
    trainer.add_targets(none)
    assert "kl" not in trainer.metric_log.flush()


def test_only_the_current_policy_and_critic_are_trained(trainer: PPOTrainer):
    experience = random_experience()
    leaves = {
        name: getattr(experience, name).clone().requires_grad_()
        for name in ("old_logps", "ref_logps", "values")
    }
    targets = trainer.add_targets(experience.with_tensors(**leaves))
    scores = current_scores(experience)
    trainer.compute_policy_loss(scores, targets, torch.tensor(10.0)).backward()
    assert scores.logps.grad.abs().sum() > 0
    assert scores.values.grad.abs().sum() > 0
    assert [leaf.grad for leaf in leaves.values()] == [None, None, None]


def test_a_model_without_critic_is_refused(trainer: PPOTrainer):
    experience = dataclasses.replace(random_experience(), values=None)
    with pytest.raises(ConfigError, match=r"`values` is missing"):
        trainer.add_targets(experience)


# TRL puts the score, and a value that it trains, one position behind the last token where there is room. Seen
# as a completion that is one token longer (with KL 0 there) its rollouts are ours.


def recorded_experience(run: dict[str, Any]) -> tuple[Experience, Tensor]:
    """The recorded rollout with those longer completions, and the mask of their real tokens."""
    rollout, args = tensors(run["rollout"]), run["args"]
    mask, tokens = ~rollout["padding_mask_p1"].bool(), ~rollout["padding_mask"].bool()
    ended = (rollout["responses"] == 2).any(1)
    # The scores were recorded behind the penalty; the trainer is to subtract it again.
    scores = rollout["scores"] + ~ended * (args["missing_eos_penalty"] or 0.0)
    count = len(scores)
    experience = Experience(
        number=0,
        rows=list(range(count)),
        prompts=["prompt"] * count,  # type: ignore[arg-type]
        completions=Completions(rollout["responses"], mask, torch.arange(count)),
        scores=scores,
        ended=ended,
        train_mask=mask,
        old_logps=rollout["logprobs"],
        ref_logps=rollout["ref_logprobs"],
        values=rollout["values"],
    )
    return experience, tokens


@pytest.mark.parametrize("name", TRL_RUNS)
def test_targets_equal_the_recorded_ones(trainer: PPOTrainer, name: str):
    run = golden(name)
    rollout = tensors(run["rollout"])
    experience, tokens = recorded_experience(run)
    targets = configured(trainer, run["args"]).add_targets(experience)
    mask = experience.train_mask
    torch.testing.assert_close(targets.returns[mask], rollout["returns"][mask], rtol=0, atol=1e-5)
    # TRL whitens over the real tokens alone; whitening whitened numbers once more makes up for that.
    whitened = masked_whiten(targets.advantages, tokens)
    torch.testing.assert_close(whitened, rollout["advantages"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("epoch", range(4))
@pytest.mark.parametrize("name", TRL_RUNS)
def test_losses_equal_the_recorded_ones(trainer: PPOTrainer, name: str, epoch: int):
    run = golden(name)
    update = run["updates"][epoch]
    batch, (experience, tokens) = tensors(update), recorded_experience(run)
    rows = batch["micro_batch_inds"]
    part = experience.take(rows.tolist()).with_tensors(
        old_logps=batch["mb_logprobs"],
        values=batch["mb_values"],
        advantages=batch["mb_advantage"],
        returns=batch["mb_return"],
    )
    configured(trainer, run["args"])
    scores = Scores(batch["new_logprobs"], torch.zeros_like(batch["vpred"]), batch["vpred"])
    num_states, num_tokens = part.train_mask.sum(), tokens[rows].sum()
    loss = trainer.compute_policy_loss(scores, part, num_states)
    # TRL divides the policy term by the real tokens, and its advantage is 0 at the position behind them.
    expected = update["pg_loss"] * num_tokens / num_states + run["args"]["vf_coef"] * update["vf_loss"]
    torch.testing.assert_close(loss, expected.double(), rtol=0, atol=1e-5)
