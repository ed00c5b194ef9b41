"""Advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, synchronous), on tokens and in environments.

    L = -E[log pi(a|s) A] + vf_coef * E[(target - V(s))^2]

The target is A + V of the rollout's critic, without gradient: with `advantage_estimator="td"` it is
R + gamma V(s') and the second term the TD loss; with `gae` it is the TD(lambda) return. With `group` (on
tokens) there is no critic and the loss is REINFORCE with the group's mean as its baseline. `vf_coef=0` leaves
the policy gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmft.objectives.a2c import a2c_loss
from mmft.objectives.policy import policy_gradient_loss
from mmft.objectives.value import td_loss
from mmft.trainers.actor_critic import ActorCriticTrainer
from mmft.trainers.advantage import AdvantageConfig, AdvantageTrainer
from mmft.trainers.agent_rollouts import AgentRolloutConfig, AgentRolloutTrainer
from mmft.trainers.experience import given


class A2CUpdates(ActorCriticTrainer):
    """The loss of A2C, whatever acts."""

    def actor_critic_loss(self, scores: Any, batch: Any, num_tokens: Tensor) -> Tensor:
        """`objectives.a2c.a2c_loss`, its two terms logged apart."""
        mask, advantages = batch.train_mask, given(batch.advantages, "advantages")
        values = targets = None
        if self.needs_critic(self.args):
            values, targets = given(scores.values, "values"), given(batch.returns, "returns")
        alpha = 0.0 if values is None else self.args.vf_coef
        loss = a2c_loss(scores.logps, advantages, values, targets, mask, alpha=alpha, num_tokens=num_tokens)
        with torch.no_grad():
            parts = {
                "policy_loss": policy_gradient_loss(scores.logps, advantages, mask, num_tokens=num_tokens)
            }
            if values is not None and targets is not None:
                parts["value_loss"] = td_loss(values, targets, mask, num_tokens=num_tokens)
        self.metric_log.add_parts(parts, num_tokens, int(mask.sum()))
        return loss


PASSES = "Passes over each rollout; nothing corrects for a policy that has moved since."


@dataclass
class A2CConfig(AdvantageConfig):
    """Settings of `A2CTrainer`.

    Example:
        >>> from mmft import A2CConfig
        >>> args = A2CConfig(output_dir="runs/example", advantage_estimator="group")
        >>> args.num_ppo_epochs, args.num_generations
        (1, 8)
    """

    num_ppo_epochs: int = field(default=1, metadata={"help": PASSES})
    vf_coef: float = field(default=0.5, metadata={"help": "alpha, the weight of the critic's loss."})


class A2CTrainer(A2CUpdates, AdvantageTrainer):
    """Actor-critic on any decoder-style vision-language model; arguments as in `OnlineTrainer`.

    Example:
        >>> from mmft import A2CConfig, A2CTrainer
        >>> from mmft.tiny import load_scenes
        >>> from rewards import CaptioningReward
        >>> rows = load_scenes("train", 8).add_column("prompt", ["Describe the picture."] * 8)
        >>> args = A2CConfig(output_dir="runs/example", max_steps=1)
        >>> trainer = A2CTrainer("mmft/tiny-captioner", CaptioningReward(), args, rows)
        >>> _ = trainer.train()
        >>> step = trainer.state.log_history[0]  # also a line of runs/example/metrics.jsonl
        >>> -0.1 < step["reward"] < 1.5
        True
    """

    args: A2CConfig


@dataclass
class AgentA2CConfig(AgentRolloutConfig):
    """Settings of `AgentA2CTrainer`.

    Example:
        >>> from mmft import AgentA2CConfig
        >>> args = AgentA2CConfig(output_dir="runs/example", total_timesteps=4096)
        >>> args.steps_per_rollout, args.max_steps
        (128, 32)
    """

    num_ppo_epochs: int = field(default=1, metadata={"help": PASSES})


class AgentA2CTrainer(A2CUpdates, AgentRolloutTrainer):
    """Advantage actor-critic in environments; arguments as in `AgentTrainer`.

    Example:
        >>> from mmft import AgentA2CConfig, AgentA2CTrainer
        >>> settings = {"total_timesteps": 32, "num_envs": 4, "warm_up_steps": 16, "eval_episodes": 8}
        >>> args = AgentA2CConfig(output_dir="runs/example", per_device_train_batch_size=32, **settings)
        >>> grid = {"size": 3, "jitter": False}
        >>> trainer = AgentA2CTrainer("mmft/tiny-captioner", "mmft/FindObject-v0", args, env_kwargs=grid)
        >>> _ = trainer.train()
        >>> sorted(trainer.evaluate(blank="image"))  # what does it need the picture for?
        ['eval_episode_length', 'eval_optimal_share', 'eval_return', 'eval_success']
    """

    args: AgentA2CConfig
