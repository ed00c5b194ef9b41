"""From settings to the trainer of an algorithm, and to a policy that only answers; the rewards of either."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmft.config import RunConfig
from mmft.data.rows import PromptDataset
from mmft.engine.scoring import Scores
from mmft.errors import ConfigError
from mmft.models.backbone import Backbone
from mmft.resolve import resolve_rewards
from mmft.trainers.collector import Judged
from mmft.trainers.experience import Experience
from mmft.trainers.online import OnlineTrainer
from mmft.trainers.registry import ALGORITHMS
from mmft.types import RewardFunction


@dataclass(frozen=True, slots=True)
class Rewards:
    """What is optimised, and what is only reported."""

    optimised: list[RewardFunction]
    reported: list[RewardFunction]


def is_offline(config: RunConfig) -> bool:
    """Whether the run learns from completions and rewards of its dataset and samples nothing."""
    return bool(getattr(config.training, "offline", False))


def load_rewards(config: RunConfig) -> Rewards:
    """The rewards of a training config; offline they judge held-out rows only, and none is needed.

    Raises:
        ConfigError: none is named, or a name cannot be resolved.
    """
    script = config.script
    rewards = Rewards(resolve_rewards(script.reward_funcs)[0], resolve_rewards(script.eval_funcs)[0])
    if rewards.optimised:
        return rewards
    if not is_offline(config):
        raise ConfigError("`reward_funcs` is empty; name at least one, such as `reward_funcs: [captioning]`.")
    if script.eval_split is not None and not (rewards.reported or script.metrics):
        raise ConfigError(
            f"`eval_split` is {script.eval_split!r}, and `reward_funcs`, `eval_funcs` and `metrics` are all "
            "empty: nothing would judge the held-out completions. Name one, or leave `eval_split` out; "
            "offline training needs none."
        )
    return rewards


def method(config: RunConfig) -> str:
    """The algorithm of a config in words."""
    algorithm = ALGORITHMS[config.script.algorithm]
    if algorithm.load_trainer().needs_critic(config.training):
        return f"{algorithm.title} and a learned critic"
    if hasattr(config.training, "advantage_estimator"):
        return f"{algorithm.title}, advantages within the group of a prompt, and no critic"
    samples = "given completions" if is_offline(config) else "its own completions"
    return f"{algorithm.title} of {samples}"


def make_trainer(
    config: RunConfig,
    backbone: Backbone,
    rewards: Rewards,
    train_rows: PromptDataset,
    held_out: PromptDataset | None,
) -> OnlineTrainer:
    """The trainer of the config's algorithm."""
    trainer = ALGORITHMS[config.script.algorithm].load_trainer()
    return trainer(
        backbone, rewards.optimised, config.training, train_rows, held_out, eval_funcs=rewards.reported
    )


def for_answering(args: Any) -> Any:
    """The settings of a trainer where nothing trains: nothing is held near where it was."""
    return dataclasses.replace(args, l2_pretrained_coef=0.0, l2_adapter_coef=0.0)


class AnsweringPolicy(OnlineTrainer):
    """A policy that answers held-out rows and is judged: no critic, no reference, whatever trained it."""

    def add_targets(self, experience: Experience) -> Experience:
        """Nothing trains."""
        raise ConfigError("this policy only answers; train it with the trainer of an algorithm.")

    def held_out_tokens(self, judged: Judged) -> list[dict[str, Any]]:
        """An evaluation is about whole answers."""
        return []

    def compute_policy_loss(self, scores: Scores, batch: Experience, num_tokens: Tensor) -> Tensor:
        """Nothing trains."""
        raise ConfigError("this policy only answers; train it with the trainer of an algorithm.")
