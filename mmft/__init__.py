"""Reinforcement-learning fine-tuning of pretrained vision-language models.

The public names are imported when they are first used: `import mmft` costs no torch and no transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmft.engine.actor_critic import VLMActorCritic
    from mmft.engine.agent import VLMAgent, load_agent
    from mmft.engine.learned_reward import LearnedReward
    from mmft.engine.saved_policy import load_policy
    from mmft.environments.making import make_environment
    from mmft.models.backbone import load_backbone
    from mmft.runs import Answerer, Run
    from mmft.trainers.a2c import A2CConfig, A2CTrainer, AgentA2CConfig, AgentA2CTrainer
    from mmft.trainers.dqn import DQNConfig, DQNTrainer
    from mmft.trainers.ppo import AgentPPOConfig, AgentPPOTrainer, PPOConfig, PPOTrainer
    from mmft.trainers.reward_model import RewardModelConfig, RewardModelTrainer
    from mmft.trainers.reward_weighted import RewardWeightedConfig, RewardWeightedTrainer

__version__ = "0.1.0"

# Public name -> the module that defines it.
_HOMES = {
    "A2CConfig": "mmft.trainers.a2c",
    "A2CTrainer": "mmft.trainers.a2c",
    "AgentA2CConfig": "mmft.trainers.a2c",
    "AgentA2CTrainer": "mmft.trainers.a2c",
    "AgentPPOConfig": "mmft.trainers.ppo",
    "AgentPPOTrainer": "mmft.trainers.ppo",
    "Answerer": "mmft.runs",
    "DQNConfig": "mmft.trainers.dqn",
    "DQNTrainer": "mmft.trainers.dqn",
    "LearnedReward": "mmft.engine.learned_reward",
    "PPOConfig": "mmft.trainers.ppo",
    "PPOTrainer": "mmft.trainers.ppo",
    "RewardModelConfig": "mmft.trainers.reward_model",
    "RewardModelTrainer": "mmft.trainers.reward_model",
    "RewardWeightedConfig": "mmft.trainers.reward_weighted",
    "RewardWeightedTrainer": "mmft.trainers.reward_weighted",
    "Run": "mmft.runs",
    "VLMActorCritic": "mmft.engine.actor_critic",
    "VLMAgent": "mmft.engine.agent",
    "load_agent": "mmft.engine.agent",
    "load_backbone": "mmft.models.backbone",
    "load_policy": "mmft.engine.saved_policy",
    "make_environment": "mmft.environments.making",
}

__all__ = [
    "A2CConfig",
    "A2CTrainer",
    "AgentA2CConfig",
    "AgentA2CTrainer",
    "AgentPPOConfig",
    "AgentPPOTrainer",
    "Answerer",
    "DQNConfig",
    "DQNTrainer",
    "LearnedReward",
    "PPOConfig",
    "PPOTrainer",
    "RewardModelConfig",
    "RewardModelTrainer",
    "RewardWeightedConfig",
    "RewardWeightedTrainer",
    "Run",
    "VLMActorCritic",
    "VLMAgent",
    "__version__",
    "load_agent",
    "load_backbone",
    "load_policy",
    "make_environment",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use (PEP 562) and keeps it: from then on it is a plain attribute."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
