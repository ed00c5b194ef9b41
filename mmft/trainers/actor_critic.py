"""Updates that actor-critic algorithms share, be it on tokens (`trainers.advantage`) or in environments
(`trainers.agent_rollouts`).

An algorithm adds `actor_critic_loss`; what the advantages are made of is the business of those who collect.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmft._masking import masked_whiten
from mmft.errors import ConfigError
from mmft.estimators.advantages import gae
from mmft.objectives.policy import approximate_kl, mean_entropy
from mmft.objectives.value import explained_variance
from mmft.trainers.config import check_range
from mmft.trainers.experience import given
from mmft.trainers.rollouts import RolloutTrainer

LAMBDAS = {"td": 0.0, "monte_carlo": 1.0}
"""lambda of the estimators that are GAE with a lambda of their own."""


@dataclass
class ActorCriticSettings:
    """Settings of `ActorCriticTrainer`; names are those of TRL's last PPO where it had them."""

    advantage_estimator: str = field(
        default="gae", metadata={"help": "gae; td (one step); monte_carlo (the whole return)."}
    )
    whiten_advantages: bool = field(
        default=False, metadata={"help": "Shift and scale a rollout's advantages to mean 0, variance 1."}
    )
    early_stop_kl: float | None = field(
        default=None,
        metadata={"help": "End a rollout's passes once the policy has moved so far, in nats per decision."},
    )
    entropy_coef: float = field(default=0.0, metadata={"help": "Bonus on the policy's entropy."})
    vf_coef: float = field(default=0.5, metadata={"help": "Weight of the critic's loss."})
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the value head; `learning_rate` if unset. Same schedule."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "lambda of GAE."})


def check_actor_critic(config: Any, estimators: tuple[str, ...]) -> None:
    """Refuses numbers outside their range, and an estimator that is none.

    Raises:
        ConfigError: names the field, its value and what it may be.
    """
    for name in ("vf_coef", "entropy_coef"):
        check_range(config, name, low=0)
    for name in ("gamma", "lam"):
        check_range(config, name, low=0, high=1)
    for name in ("early_stop_kl", "critic_learning_rate"):
        check_range(config, name, above=0)
    if config.early_stop_kl is not None and config.num_ppo_epochs * config.num_mini_batches == 1:
        raise ConfigError(
            f"`early_stop_kl` is {config.early_stop_kl}, but a rollout gets one optimizer step "
            "(`num_ppo_epochs` x `num_mini_batches`), after which it ends anyway. Leave it out."
        )
    if config.advantage_estimator not in estimators:
        raise ConfigError(
            f"`advantage_estimator` must be {', '.join(estimators)}; got {config.advantage_estimator!r}."
        )


class ActorCriticTrainer(RolloutTrainer, abc.ABC):
    """Policy gradients with a critic: its targets, its loss around the algorithm's, its early stop."""

    args: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._moved = torch.zeros((), device=self.args.device)

    @classmethod
    def needs_critic(cls, args: Any) -> bool:
        """Whether values are learned."""
        return True

    @abc.abstractmethod
    def actor_critic_loss(self, scores: Any, batch: Any, num_tokens: Tensor) -> Tensor:
        """The loss of policy and critic on one micro-batch: a sum over its decisions by `num_tokens`.

        `scores` has `logps`, `entropies` and `values`, `batch` what was known when it was collected."""

    def advantages_and_returns(
        self, rewards: Tensor, values: Tensor, next_values: Tensor, mask: Tensor, **ends: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, T) advantages by the named estimator, whitened where wanted, and the critic's targets A + V."""
        advantages = self.estimated_advantages(rewards, values, next_values, mask, **ends)
        returns = advantages + values
        variance = explained_variance(values, returns, mask, reduce=self._sum_over_processes)
        self.metric_log.add("explained_variance", float(variance))
        if self.args.whiten_advantages:
            advantages = masked_whiten(advantages, mask, reduce=self._sum_over_processes)
        return advantages, returns

    def estimated_advantages(
        self, rewards: Tensor, values: Tensor, next_values: Tensor, mask: Tensor, **ends: Tensor
    ) -> Tensor:
        """(B, T) advantages by the named estimator, in units of the reward."""
        args = self.args
        return gae(
            rewards,
            values,
            next_values,
            discount=args.gamma,
            lam=LAMBDAS.get(args.advantage_estimator, args.lam),
            mask=mask,
            **ends,
        )

    def compute_policy_loss(self, scores: Any, batch: Any, num_tokens: Tensor) -> Tensor:
        """The algorithm's loss, less the entropy bonus."""
        mask, tokens = batch.train_mask, int(batch.train_mask.sum())
        loss = self.actor_critic_loss(scores, batch, num_tokens)
        moved = approximate_kl(scores.logps, given(batch.old_logps, "old_logps"), mask, num_tokens=1)
        self._moved = self._moved + moved
        self.metric_log.add("approx_kl", float(moved) / max(tokens, 1), tokens)
        if self.args.entropy_coef:
            entropies = given(scores.entropies, "entropies")
            loss = loss - self.args.entropy_coef * mean_entropy(entropies, mask, num_tokens=num_tokens)
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in `RolloutTrainer`; ends the passes over a rollout that the policy has moved away from."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self._stop_early()
        return loss

    def _stop_early(self) -> None:
        if self.args.early_stop_kl is not None and self.clock.step:
            moved = self._sum_over_processes(self._moved) / self._num_tokens.clamp(min=1)
            if moved > self.args.early_stop_kl:
                self.clock.end_rollout()
                self.metric_log.count("early_stops", float(self.is_world_process_zero()))
        self._moved = torch.zeros_like(self._moved)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in `transformers.Trainer`, with the critic's own learning rate."""
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if fresh and self.args.critic_learning_rate is not None:
            critic = {id(p) for n, p in self.module.named_parameters() if n.startswith("value_head.")}
            split_off(optimizer, critic, lr=self.args.critic_learning_rate)
        return optimizer


def split_off(optimizer: torch.optim.Optimizer, chosen: set[int], **settings: Any) -> None:
    """Gives parameters, named by `id`, groups of their own: the settings of their group, but for these."""
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in chosen]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
            optimizer.add_param_group(
                {n: v for n, v in group.items() if n != "params"} | settings | {"params": moved}
            )
