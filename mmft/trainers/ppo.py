"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) with a critic, token by token.

As in Ziegler et al. 2019 (arXiv:1909.08593): the KL to the pretrained policy is part of the reward, the score
of the reward functions arrives with the last token, and advantages are whitened over the rollout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from mmft._masking import last_valid, masked_whiten, zero_outside
from mmft.engine.scoring import Scores
from mmft.errors import ConfigError
from mmft.estimators.advantages import gae
from mmft.estimators.returns import shift_values
from mmft.estimators.rewards import penalize_missing_eos, per_token_rewards
from mmft.objectives.kl import KLEstimator, kl_penalty
from mmft.objectives.policy import approximate_kl, clip_fraction, clipped_policy_loss
from mmft.objectives.value import clipped_value_loss, explained_variance, value_clip_fraction
from mmft.trainers.config import OnlineConfig
from mmft.trainers.experience import Experience, given
from mmft.trainers.online import OnlineTrainer


@dataclass
class PPOConfig(OnlineConfig):
    """Settings of `PPOTrainer`; names and defaults are those of TRL's last PPO where it had them."""

    kl_coef: float = field(
        default=0.05, metadata={"help": "Price of leaving the reference policy; 0 needs none."}
    )
    kl_estimator: str = field(default="k1", metadata={"help": "Per-token KL estimate: k1 or k3."})
    cliprange: float = field(default=0.2, metadata={"help": "eps of the clipped policy ratio."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the critic's loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "How far values may move per rollout."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "lambda of GAE."})
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Scale per-token rewards to unit variance."}
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of completions that were cut."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (
            ("kl_coef", 0, None), ("cliprange", 0, None), ("vf_coef", 0, None), ("cliprange_value", 0, None),
            ("gamma", 0, 1), ("lam", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                bound = f">= {low}" if high is None else f"between {low} and {high}"
                raise ConfigError(f"`{name}` must be {bound}; got {value}.")
        if self.kl_estimator not in ("k1", "k3"):
            raise ConfigError(f"`kl_estimator` must be 'k1' or 'k3'; got {self.kl_estimator!r}.")


class PPOTrainer(OnlineTrainer):
    """PPO on any decoder-style vision-language model; arguments as in `OnlineTrainer`."""

    args: PPOConfig

    @classmethod
    def needs_critic(cls, args: PPOConfig) -> bool:
        """Always."""
        return True

    @classmethod
    def needs_reference(cls, args: PPOConfig) -> bool:
        """Whether KL has a price."""
        return args.kl_coef != 0

    @property
    def discount(self) -> float:
        """Per token."""
        return self.args.gamma

    def add_targets(self, experience: Experience) -> Experience:
        """Per-token rewards, GAE, and advantages whitened over the valid tokens of all processes."""
        args, mask, values = self.args, experience.train_mask, given(experience.values, "values")
        kl = self._kl(experience)
        scores = experience.scores
        if args.missing_eos_penalty is not None:
            scores = penalize_missing_eos(scores, experience.ended, penalty=args.missing_eos_penalty)
        rewards = per_token_rewards(scores, kl, mask, kl_coef=args.kl_coef)
        if experience.token_rewards is not None:
            rewards = rewards + zero_outside(experience.token_rewards, mask)
        if args.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False, reduce=self._sum_over_processes)
        # A cut completion is judged as it stands, so nothing follows its last token either.
        ends = last_valid(mask)
        advantages = gae(
            rewards,
            values,
            shift_values(values, mask),
            terminated=ends,
            last=ends,
            discount=args.gamma,
            lam=args.lam,
            mask=mask,
        )
        returns = advantages + values
        variance = explained_variance(values, returns, mask, reduce=self._sum_over_processes)
        self.metric_log.add("explained_variance", float(variance))
        whitened = masked_whiten(advantages, mask, reduce=self._sum_over_processes)
        return experience.with_tensors(advantages=whitened, returns=returns)

    def _kl(self, experience: Experience) -> Tensor:
        """(N, R) per-token KL to the reference; logged in nats per completion."""
        old_logps = given(experience.old_logps, "old_logps")
        if experience.ref_logps is None:
            return torch.zeros_like(old_logps)
        kl = kl_penalty(old_logps, experience.ref_logps, cast(KLEstimator, self.args.kl_estimator))
        kl = kl * experience.completions.mask
        self.metric_log.add_all("kl", kl.sum(1).tolist())
        return kl

    def compute_policy_loss(self, scores: Scores, batch: Experience, num_tokens: Tensor) -> Tensor:
        """Clipped policy loss + `vf_coef` * clipped value loss."""
        args, mask = self.args, batch.train_mask
        old_logps = given(batch.old_logps, "old_logps")
        policy = (scores.logps, old_logps, given(batch.advantages, "advantages"), mask)
        returns = given(batch.returns, "returns")
        value = (given(scores.values, "values"), given(batch.values, "values"), returns, mask)
        policy_loss = clipped_policy_loss(*policy, clip=args.cliprange, num_tokens=num_tokens)
        value_loss = clipped_value_loss(*value, clip=args.cliprange_value, num_tokens=num_tokens)
        tokens = int(mask.sum())
        for name, number in {
            "policy_loss": policy_loss * num_tokens / max(tokens, 1),
            "value_loss": value_loss * num_tokens / max(tokens, 1),
            "clip_fraction": clip_fraction(*policy, clip=args.cliprange, num_tokens=max(tokens, 1)),
            "value_clip_fraction": value_clip_fraction(
                *value, clip=args.cliprange_value, num_tokens=max(tokens, 1)
            ),
            "approx_kl": approximate_kl(scores.logps, old_logps, mask, num_tokens=max(tokens, 1)),
        }.items():
            self.metric_log.add(name, float(number.detach()), tokens)
        return policy_loss + args.vf_coef * value_loss
