"""What PPO and actor-critic share: rewards per token less the price of KL, advantages by name, the critic.

The KL to the pretrained policy is part of the reward and the score of the reward functions arrives with the
last token, as in Ziegler et al. 2019 (arXiv:1909.08593). A trainer adds its loss: `trainers.ppo`,
`trainers.a2c`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from mmft._masking import last_valid, masked_sum, masked_whiten, zero_outside
from mmft.errors import ConfigError
from mmft.estimators.advantages import group_advantages
from mmft.estimators.returns import discounted_return, shift_values
from mmft.estimators.rewards import judged_mask, penalize_missing_eos, per_token_rewards
from mmft.objectives.kl import KLEstimator, adapted_kl_coef, kl_penalty
from mmft.trainers.actor_critic import ActorCriticSettings, ActorCriticTrainer, check_actor_critic
from mmft.trainers.collector import Judged
from mmft.trainers.config import OnlineConfig, check_range
from mmft.trainers.experience import Experience, given
from mmft.trainers.online import OnlineTrainer

GROUP = "group"
ESTIMATORS = ("gae", "td", "monte_carlo", GROUP)


@dataclass
class AdvantageConfig(ActorCriticSettings, OnlineConfig):
    """Settings of `AdvantageTrainer`; names are those of TRL's last PPO where it had them."""

    advantage_estimator: str = field(
        default="gae",
        metadata={
            "help": "gae; td (one step), monte_carlo (the whole return); group: reward minus the mean of the "
            "prompt's completions, without a critic."
        },
    )
    scale_rewards: bool = field(
        default=True, metadata={"help": "`group` only: divide by the standard deviation of the group."}
    )
    whiten_advantages: bool = field(
        default=False,
        metadata={
            "help": "Shift and scale a rollout's advantages to mean 0, variance 1; not those of `group`."
        },
    )
    kl_coef: float = field(
        default=0.05, metadata={"help": "Price of leaving the reference policy; 0 needs none."}
    )
    kl_estimator: str = field(default="k1", metadata={"help": "Per-token KL estimate: k1 or k3."})
    kl_target: float | None = field(
        default=None,
        metadata={"help": "Adapt `kl_coef` so that the KL stays here, in nats per completion."},
    )
    kl_horizon: int = field(
        default=10_000, metadata={"help": "Completions over which `kl_coef` adapts; fewer is faster."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the critic's loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Scale per-token rewards to unit variance."}
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of completions that were cut."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_actor_critic(self, ESTIMATORS)
        check_range(self, "kl_coef", low=0)
        for name in ("kl_target", "kl_horizon"):
            check_range(self, name, above=0)
        if self.kl_estimator not in ("k1", "k3"):
            raise ConfigError(f"`kl_estimator` must be 'k1' or 'k3'; got {self.kl_estimator!r}.")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ConfigError(
                f"`kl_target` is {self.kl_target}, but `kl_coef` is 0, which no factor changes. Set "
                "`kl_coef` to where the controller starts."
            )
        self._check_estimator()

    def _check_estimator(self) -> None:
        if self.advantage_estimator != GROUP:
            return
        if self.num_generations < 2:
            raise ConfigError(
                "`advantage_estimator: group` compares completions of one prompt; set `num_generations` to "
                f"at least 2 (got {self.num_generations})."
            )
        if self.critic_learning_rate is not None:
            raise ConfigError(
                f"`critic_learning_rate` is {self.critic_learning_rate}, but `advantage_estimator: group` "
                "has no critic. Leave it out."
            )


class AdvantageTrainer(ActorCriticTrainer, OnlineTrainer, abc.ABC):
    """Policy gradients with advantages of any kind; arguments as in `OnlineTrainer`."""

    args: AdvantageConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adapted_kl_coef = self.args.kl_coef
        self._check_horizon()

    def _check_horizon(self) -> None:
        """One rollout changes the price of KL by at most a fifth of its share of the horizon."""
        args, count = self.args, self.args.per_device_train_batch_size * self.accelerator.num_processes
        samples = count * args.gradient_accumulation_steps * args.num_mini_batches
        if args.kl_target is not None and args.kl_horizon < samples:
            raise ConfigError(
                f"`kl_horizon` is {args.kl_horizon}, less than the {samples} completions of one rollout: "
                "`kl_coef` would jump. Set it to several rollouts."
            )

    @classmethod
    def needs_critic(cls, args: AdvantageConfig) -> bool:
        """Whether values are learned: not for advantages within groups."""
        return args.advantage_estimator != GROUP

    @classmethod
    def needs_reference(cls, args: AdvantageConfig) -> bool:
        """Whether KL has a price."""
        return args.kl_coef != 0

    @property
    def kl_coef(self) -> float:
        """The price of KL as it is now; `kl_target` moves it from rollout to rollout."""
        return self.args.kl_coef if self.args.kl_target is None else self._adapted_kl_coef

    @property
    def discount(self) -> float:
        """Per token."""
        return self.args.gamma

    def scoring_options(self) -> dict[str, Any]:
        """Entropies with gradients, where they earn something."""
        return {"entropy_gradients": True} if self.args.entropy_coef else {}

    # Targets

    def add_targets(self, experience: Experience) -> Experience:
        """Per-token rewards, and what the named estimator makes of them."""
        rewards = self._rewards(experience)
        if not self.needs_critic(self.args):
            return experience.with_tensors(advantages=self._group_advantages(rewards, experience))
        mask, values = experience.train_mask, given(experience.values, "values")
        advantages, returns = self.advantages_and_returns(
            rewards, values, mask=mask, **_as_episodes(values, mask)
        )
        return experience.with_tensors(advantages=advantages, returns=returns)

    def held_out_advantages(self, judged: Judged) -> Tensor | None:
        """(N, R) by the named estimator, neither whitened nor with the price of KL; None without a critic."""
        values = judged.samples.values
        if values is None:
            return None
        scores = self._scores(judged.judgement.total.to(values.device), judged.samples.ended)
        mask = judged_mask(scores, judged.samples.completions.mask)
        rewards = per_token_rewards(scores, torch.zeros_like(values), mask, kl_coef=0.0)
        return self.estimated_advantages(rewards, values, mask=mask, **_as_episodes(values, mask))

    def _scores(self, totals: Tensor, ended: Tensor) -> Tensor:
        """(N,) what completions are paid at their end."""
        penalty = self.args.missing_eos_penalty
        return totals if penalty is None else penalize_missing_eos(totals, ended, penalty=penalty)

    def _rewards(self, experience: Experience) -> Tensor:
        """(N, R) what each token earned."""
        args, mask = self.args, experience.train_mask
        scores = self._scores(experience.scores, experience.ended)
        kl = self._kl(experience)
        rewards = per_token_rewards(scores, kl, mask, kl_coef=self.kl_coef)
        self._adapt_kl_coef(kl, experience.completions.mask)
        if experience.token_rewards is not None:
            rewards = rewards + zero_outside(experience.token_rewards, mask)
        if args.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False, reduce=self._sum_over_processes)
        return rewards

    def _group_advantages(self, rewards: Tensor, experience: Experience) -> Tensor:
        """(N, R) every token of a completion gets the advantage of the whole."""
        mask = experience.train_mask
        totals = discounted_return(rewards, mask, discount=self.args.gamma)
        totals = torch.where(experience.scores.isnan(), torch.nan, totals)  # unjudged, which is not 0
        groups = experience.completions.prompt_index
        advantages = group_advantages(totals, groups, scale=self.args.scale_rewards)
        return zero_outside(advantages[:, None].expand_as(rewards), mask)

    def _kl(self, experience: Experience) -> Tensor:
        """(N, R) per-token KL to the reference; logged in nats per completion."""
        old_logps = given(experience.old_logps, "old_logps")
        if experience.ref_logps is None:
            return torch.zeros_like(old_logps)
        kl = kl_penalty(old_logps, experience.ref_logps, cast(KLEstimator, self.args.kl_estimator))
        kl = kl * experience.completions.mask
        self.metric_log.add_all("kl", kl.sum(1).tolist())
        return kl

    def _adapt_kl_coef(self, kl: Tensor, mask: Tensor) -> None:
        """Moves the price of KL for the rollouts to come."""
        args = self.args
        if args.kl_target is None:
            return
        self.metric_log.add("kl_coef", self.kl_coef)
        total, count = self._sum_over_processes(
            torch.stack([masked_sum(kl, mask), torch.tensor(float(len(kl)), device=kl.device)])
        ).tolist()
        self._adapted_kl_coef = adapted_kl_coef(
            self.kl_coef,
            total / count,
            target=args.kl_target,
            horizon=args.kl_horizon,
            num_samples=int(count),
        )

    # Checkpoints

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `OnlineTrainer`; a run that is not resumed starts at the configured price of KL."""
        self._adapted_kl_coef = self.args.kl_coef
        return super().train(*args, **kwargs)

    def progress(self) -> dict[str, Any]:
        """As in `OnlineTrainer`, and the price of KL."""
        return super().progress() | {"kl_coef": self.kl_coef}

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Takes up what `progress` gave."""
        super().restore_progress(progress)
        self._adapted_kl_coef = progress["kl_coef"]


def _as_episodes(values: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """(N, R) what follows each token. A cut completion is judged as it stands: nothing follows its end."""
    ends = last_valid(mask)
    return {"next_values": shift_values(values, mask), "terminated": ends, "last": ends}
