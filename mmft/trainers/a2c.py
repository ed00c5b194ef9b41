"""Advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, synchronous), token by token.

    L = -E[log pi(a|s) A] + vf_coef * E[(target - V(s))^2]

The target is A + V of the rollout's critic, without gradient: with `advantage_estimator="td"` it is
R + gamma V(s') and the second term the TD loss; with `gae` it is the TD(lambda) return. With `group` there is
no critic and the loss is REINFORCE with the group's mean as its baseline. `vf_coef=0` leaves the policy
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from mmft.engine.scoring import Scores
from mmft.objectives.policy import policy_gradient_loss
from mmft.objectives.value import td_loss
from mmft.trainers.advantage import AdvantageConfig, AdvantageTrainer
from mmft.trainers.experience import Experience, given


@dataclass
class A2CConfig(AdvantageConfig):
    """Settings of `A2CTrainer`."""

    num_ppo_epochs: int = field(
        default=1,
        metadata={"help": "Passes over each rollout; nothing corrects for a policy that has moved since."},
    )
    vf_coef: float = field(default=0.5, metadata={"help": "alpha, the weight of the critic's loss."})


class A2CTrainer(AdvantageTrainer):
    """Actor-critic on any decoder-style vision-language model; arguments as in `OnlineTrainer`."""

    args: A2CConfig

    def actor_critic_loss(self, scores: Scores, batch: Experience, num_tokens: Tensor) -> Tensor:
        """Policy gradient + `vf_coef` * squared TD error."""
        mask, advantages = batch.train_mask, given(batch.advantages, "advantages")
        parts = {"policy_loss": policy_gradient_loss(scores.logps, advantages, mask, num_tokens=num_tokens)}
        loss = parts["policy_loss"]
        if self.needs_critic(self.args):
            values, targets = given(scores.values, "values"), given(batch.returns, "returns")
            parts["value_loss"] = td_loss(values, targets, mask, num_tokens=num_tokens)
            loss = loss + self.args.vf_coef * parts["value_loss"]
        self.log_parts(parts, num_tokens, int(mask.sum()))
        return loss
