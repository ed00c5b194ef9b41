"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347), on tokens and in environments.

On tokens as in Ziegler et al. 2019 (arXiv:1909.08593): the KL to the pretrained policy is part of the reward,
and advantages are whitened over the rollout. With `advantage_estimator="group"` the clipped surrogate stays
and the critic goes: Shao et al. 2024 (arXiv:2402.03300) with the KL in the reward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmft.objectives.policy import clip_fraction, clipped_policy_loss
from mmft.objectives.value import clipped_value_loss, value_clip_fraction
from mmft.trainers.actor_critic import ActorCriticTrainer
from mmft.trainers.advantage import AdvantageConfig, AdvantageTrainer
from mmft.trainers.agent_rollouts import AgentRolloutConfig, AgentRolloutTrainer
from mmft.trainers.config import check_range
from mmft.trainers.experience import given


@dataclass
class PPOSettings:
    """What PPO adds, whatever acts."""

    cliprange: float = field(default=0.2, metadata={"help": "eps of the clipped policy ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "How far values may move per rollout."})
    whiten_advantages: bool = field(
        default=True,
        metadata={
            "help": "Shift and scale a rollout's advantages to mean 0, variance 1; not those of `group`."
        },
    )

    def check_clipping(self) -> None:
        """Refuses negative clip ranges."""
        for name in ("cliprange", "cliprange_value"):
            check_range(self, name, low=0, finite=False)  # infinity switches clipping off


class PPOUpdates(ActorCriticTrainer):
    """The loss of PPO, whatever acts."""

    def actor_critic_loss(self, scores: Any, batch: Any, num_tokens: Tensor) -> Tensor:
        """Clipped policy loss + `vf_coef` * clipped value loss."""
        args, mask = self.args, batch.train_mask
        old_logps, advantages = given(batch.old_logps, "old_logps"), given(batch.advantages, "advantages")
        policy = (scores.logps, old_logps, advantages, mask)
        parts = {
            "policy_loss": clipped_policy_loss(*policy, clip=args.cliprange, num_tokens=num_tokens),
            "clip_fraction": clip_fraction(*policy, clip=args.cliprange, num_tokens=num_tokens),
        }
        loss = parts["policy_loss"]
        if self.needs_critic(args):
            returns = given(batch.returns, "returns")
            value = (given(scores.values, "values"), given(batch.values, "values"), returns, mask)
            parts |= {
                "value_loss": clipped_value_loss(*value, clip=args.cliprange_value, num_tokens=num_tokens),
                "value_clip_fraction": value_clip_fraction(
                    *value, clip=args.cliprange_value, num_tokens=num_tokens
                ),
            }
            loss = loss + args.vf_coef * parts["value_loss"]
        self.metric_log.add_parts(parts, num_tokens, int(mask.sum()))
        return loss


@dataclass
class PPOConfig(PPOSettings, AdvantageConfig):
    """Settings of `PPOTrainer`; names and defaults are those of TRL's last PPO where it had them.

    Example:
        >>> from mmft import PPOConfig
        >>> args = PPOConfig(output_dir="runs/example", num_generations=4, learning_rate=2e-5)
        >>> args.advantage_estimator, args.cliprange, args.num_ppo_epochs
        ('gae', 0.2, 4)
        >>> PPOConfig(output_dir="runs/example", per_device_train_batch_size=6, num_generations=4)
        Traceback (most recent call last):
            ...
        mmft.errors.ConfigError: `per_device_train_batch_size=6` counts completions and must be a ...
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_clipping()


class PPOTrainer(PPOUpdates, AdvantageTrainer):
    """PPO on any decoder-style vision-language model; arguments as in `OnlineTrainer`.

    Example:
        >>> from peft import LoraConfig
        >>> from mmft import PPOConfig, PPOTrainer
        >>> from mmft.tiny import load_scenes
        >>> from rewards import CaptioningReward
        >>> rows, prompts = load_scenes("train", 16), ["Describe the picture."] * 16
        >>> held_out = load_scenes("validation", 16).add_column("prompt", prompts)
        >>> trainer = PPOTrainer(
        ...     "mmft/tiny-captioner",
        ...     CaptioningReward(alpha=1.0, beta=0.5, gamma=0.1),
        ...     PPOConfig(output_dir="runs/example", max_steps=2, num_ppo_epochs=2),
        ...     train_dataset=rows.add_column("prompt", prompts),
        ...     eval_dataset=held_out,
        ...     peft_config=LoraConfig(r=4, target_modules=r".*language_model.*_proj"),
        ... )
        >>> _ = trainer.train()
        >>> 0 < trainer.evaluate()["eval_reward"] < 1.5
        True
        >>> len(trainer.eval_samples), trainer.eval_samples[0]["row"]  # one record per held-out row
        (16, 0)
    """

    args: PPOConfig


@dataclass
class AgentPPOConfig(PPOSettings, AgentRolloutConfig):
    """Settings of `AgentPPOTrainer`.

    Example:
        >>> from mmft import AgentPPOConfig
        >>> args = AgentPPOConfig(output_dir="runs/example", total_timesteps=4096)
        >>> args.steps_per_rollout, args.max_steps
        (512, 128)
    """

    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(default=4, metadata={"help": "Optimizer steps per pass."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_clipping()


class AgentPPOTrainer(PPOUpdates, AgentRolloutTrainer):
    """PPO in environments; arguments as in `AgentTrainer`.

    Example:
        >>> from mmft import AgentPPOConfig, AgentPPOTrainer
        >>> settings = {"total_timesteps": 32, "num_envs": 4, "warm_up_steps": 16, "eval_episodes": 8}
        >>> batch = {"per_device_train_batch_size": 32, "num_mini_batches": 1}
        >>> args = AgentPPOConfig(output_dir="runs/example", **settings, **batch)
        >>> grid = {"size": 3, "jitter": False}
        >>> trainer = AgentPPOTrainer("mmft/tiny-captioner", "mmft/FindObject-v0", args, env_kwargs=grid)
        >>> _ = trainer.train()
        >>> 0 <= trainer.evaluate()["eval_success"] <= 1
        True
    """

    args: AgentPPOConfig
