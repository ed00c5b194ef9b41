"""The algorithms by name, for commands and recipes; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmft.trainers.agent import AgentTrainer
    from mmft.trainers.agent_config import AgentConfig
    from mmft.trainers.config import OnlineConfig
    from mmft.trainers.online import OnlineTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """Where an algorithm is. It trains what a model writes, what it does in an environment, or either."""

    name: str
    """Of its command, and of `algorithm` in a recipe."""
    title: str
    """Its name in a sentence."""
    module: str
    trainer: str | None = None
    """Of what a model writes."""
    config: str | None = None
    agent_trainer: str | None = None
    """Of what it does in an environment."""
    agent_config: str | None = None

    @property
    def writes(self) -> bool:
        """Whether it trains what a model writes."""
        return self.trainer is not None

    @property
    def acts(self) -> bool:
        """Whether it trains an agent in an environment."""
        return self.agent_trainer is not None

    def load_trainer(self) -> type[OnlineTrainer]:
        """The trainer's class."""
        return self._load(self.trainer)

    def load_config(self) -> type[OnlineConfig]:
        """The dataclass of its settings."""
        return self._load(self.config)

    def load_agent_trainer(self) -> type[AgentTrainer]:
        """The class of the trainer in environments."""
        return self._load(self.agent_trainer)

    def load_agent_config(self) -> type[AgentConfig]:
        """The dataclass of its settings."""
        return self._load(self.agent_config)

    def _load(self, name: str | None) -> Any:
        if name is None:
            raise ValueError(
                f"{self.name!r} does not train that: ask `writes` and `acts` before you load its classes."
            )
        return getattr(importlib.import_module(self.module), name)


DEFAULT_ALGORITHM = "ppo"
ALGORITHMS = {
    each.name: each
    for each in (
        Algorithm(
            name="ppo",
            title="PPO",
            module="mmft.trainers.ppo",
            trainer="PPOTrainer",
            config="PPOConfig",
            agent_trainer="AgentPPOTrainer",
            agent_config="AgentPPOConfig",
        ),
        Algorithm(
            name="a2c",
            title="A2C",
            module="mmft.trainers.a2c",
            trainer="A2CTrainer",
            config="A2CConfig",
            agent_trainer="AgentA2CTrainer",
            agent_config="AgentA2CConfig",
        ),
        Algorithm(
            name="rwl",
            title="reward-weighted likelihood",
            module="mmft.trainers.reward_weighted",
            trainer="RewardWeightedTrainer",
            config="RewardWeightedConfig",
        ),
        Algorithm(
            name="dqn",
            title="deep Q-learning",
            module="mmft.trainers.dqn",
            agent_trainer="DQNTrainer",
            agent_config="DQNConfig",
        ),
    )
}
