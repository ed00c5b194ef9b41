"""The online algorithms by name, for commands and recipes; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmft.trainers.config import OnlineConfig
    from mmft.trainers.online import OnlineTrainer


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Where an algorithm is."""

    name: str
    """Of its command, and of `algorithm` in a recipe."""
    title: str
    """Its name in a sentence."""
    module: str
    trainer: str
    config: str

    def load_trainer(self) -> type[OnlineTrainer]:
        """The trainer's class."""
        return self._load(self.trainer)

    def load_config(self) -> type[OnlineConfig]:
        """The dataclass of its settings."""
        return self._load(self.config)

    def _load(self, name: str) -> Any:
        return getattr(importlib.import_module(self.module), name)


DEFAULT_ALGORITHM = "ppo"
ALGORITHMS = {
    each.name: each
    for each in (
        Algorithm("ppo", "PPO", "mmft.trainers.ppo", "PPOTrainer", "PPOConfig"),
        Algorithm("a2c", "A2C", "mmft.trainers.a2c", "A2CTrainer", "A2CConfig"),
        Algorithm(
            "rwl",
            "reward-weighted likelihood",
            "mmft.trainers.reward_weighted",
            "RewardWeightedTrainer",
            "RewardWeightedConfig",
        ),
    )
}
