"""One deep Q-learning, twice: `DQNTrainer` and the DQN of stable-baselines3, on the same features of FindObject.

`learn` gives learning curves, `speed` the clock of a short run. Both systems get the same environments, the
same frozen model with the same statistics of its features, a head of the same shape, the same settings.

Shapes: B observations, D width of the features.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from transformers import TrainerCallback

from mmft.engine.agent import VLMAgent
from mmft.engine.environment_pool import EnvironmentPool
from mmft.engine.observations import Observation, ObservationReader
from mmft.engine.playing import Player
from mmft.engine.state_encoder import StateEncoder
from mmft.environments.making import make_environment
from mmft.models.backbone import Backbone, load_backbone
from mmft.models.packaged import CAPTIONER_NAME
from mmft.trainers.dqn import DQNConfig, DQNTrainer
from mmft.trainers.held_out_episodes import episode_means, play_episodes

ENVIRONMENT = "mmft/FindObject-v0"
RULES = {
    "size": 3,
    "wrong_reward": 0.0,
    "jitter": False,
    "colours": ["red", "blue"],
    "shapes": ["circle", "star"],
}
NUM_ENVS = 16
LEARNING_STARTS = 1_008  # a whole number of steps of all environments
STEPS_PER_UPDATE = 4
TARGET_UPDATES = 250
"""Updates between two of the target network."""
EVALUATION_SEED, EVALUATION_EPISODES = 77, 100
STATISTICS_SEED = 10_000

MMFT, SB3 = "mmft", "stable-baselines3"
FORGETS, REMEMBERS = "mmft, cache off", "mmft"
INSIDE = "stable-baselines3, model in the policy"
WRAPPER = "stable-baselines3, model in a wrapper"
REMEMBERING = "stable-baselines3, wrapper that remembers"

Curve = list[dict[str, float]]
Make = Callable[[], "gymnasium.Env[Any, Any]"]


def make_env() -> gymnasium.Env[Any, Any]:
    return make_environment(ENVIRONMENT, RULES)


def settings(total: int, seed: int, folder: str, **others: Any) -> DQNConfig:
    """Those of `DQNTrainer`; `sb3_settings` says the same in the other language."""
    return DQNConfig(
        output_dir=folder,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        logging_steps=1_000_000,
        lr_scheduler_type="constant",
        seed=seed,
        total_timesteps=total,
        num_envs=NUM_ENVS,
        learning_starts=LEARNING_STARTS,
        train_freq=STEPS_PER_UPDATE,
        target_update_interval=TARGET_UPDATES,
        learning_rate=1e-3,
        gamma=0.95,
        hidden_sizes=[256, 256],
        double_q=False,
        huber_delta=1.0,
        **others,
    )


def sb3_settings(args: DQNConfig) -> dict[str, Any]:
    """Its Huber loss is half of ours, which Adam does not notice, nor clipping where gradients are below it."""
    return {
        "seed": args.seed,
        "learning_rate": args.learning_rate,
        "buffer_size": args.buffer_size,
        "learning_starts": args.learning_starts,
        "batch_size": args.per_device_train_batch_size,
        "gamma": args.gamma,
        "train_freq": 1,  # of all environments together
        "gradient_steps": NUM_ENVS // STEPS_PER_UPDATE,
        "target_update_interval": TARGET_UPDATES * STEPS_PER_UPDATE,  # in steps of environments
        "exploration_fraction": args.exploration_fraction,
        "exploration_initial_eps": args.exploration_initial_eps,
        "exploration_final_eps": args.exploration_final_eps,
        "max_grad_norm": args.max_grad_norm,
        "device": "cpu",
    }


# What both read


def make_reader() -> ObservationReader:
    env = make_env()
    return ObservationReader(env.observation_space, env.action_space, environment=ENVIRONMENT)


def make_player(seed: int) -> Player:
    return Player(EnvironmentPool(make_env, NUM_ENVS, name=ENVIRONMENT, seed=seed), make_reader())


def make_agent(backbone: Backbone, args: DQNConfig, encoder: StateEncoder | None = None) -> VLMAgent:
    """The model, the statistics of what it makes of random play, and a fresh head.

    Args:
        backbone: the frozen model.
        args: of `DQNTrainer`.
        encoder: of an earlier run, with what it remembers.
    """
    torch.manual_seed(args.seed)
    spec = args.agent_spec("q", make_reader())
    agent = VLMAgent(backbone, spec, cache_bytes=args.feature_cache_mb * 2**20)
    if encoder is not None:
        agent.encoder = encoder
    player = make_player(STATISTICS_SEED + args.seed)
    player.start()
    draws = np.random.default_rng(args.seed)
    chunks = []
    for _ in range(LEARNING_STARTS // NUM_ENVS):
        chunks.append(agent.encoder.encode(player.observations))
        player.play(torch.from_numpy(draws.integers(0, player.reader.num_actions, NUM_ENVS)))
    agent.transforms.fit(chunks)
    return agent


@torch.no_grad()
def evaluate(agent: VLMAgent, q_of: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Greedy play by action values of (B, D) features, in the same episodes each time."""

    def act(observations: Sequence[Observation], legal: Tensor) -> tuple[Tensor, Tensor]:
        q = q_of(agent.fused(observations))
        return q.argmax(1), q

    player = make_player(EVALUATION_SEED)
    return episode_means(play_episodes(player, act, EVALUATION_EPISODES))


class Encoded(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shows the features in place of picture and mission: the model runs once for each step, on one of them."""

    def __init__(self, env: gymnasium.Env[Any, Any], agent: VLMAgent) -> None:
        super().__init__(env)
        self.agent, self.reader = agent, make_reader()
        width = agent.transforms.widths["fused"]
        self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)

    @torch.no_grad()
    def observation(self, observation: Any) -> Any:
        return self.agent.fused([self.reader.read(observation, {})])[0].numpy()


class Numbered(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shows the mission as a number: stable-baselines3 has no spaces of text."""

    missions = [f"go to the {c} {s}" for c in RULES["colours"] for s in RULES["shapes"]]  # type: ignore[attr-defined]  # noqa: RUF012

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        pictures = env.observation_space["image"]  # type: ignore[index]
        numbers = spaces.Box(0, len(self.missions), (1,), np.float32)
        self.observation_space = spaces.Dict({"image": pictures, "mission": numbers})

    def observation(self, observation: Any) -> Any:
        number = np.array([self.missions.index(observation["mission"])], np.float32)
        return {"image": observation["image"], "mission": number}


class ModelInside(BaseFeaturesExtractor):
    """What the model makes of a batch, each time anew."""

    def __init__(self, observation_space: spaces.Dict, agent: VLMAgent) -> None:
        super().__init__(observation_space, agent.transforms.widths["fused"])
        self._agent, self._reader = [agent], make_reader()  # in a list: no part of the network, never copied

    @torch.no_grad()
    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        pictures = observations["image"].permute(0, 2, 3, 1).to(torch.uint8).numpy()
        missions = [Numbered.missions[int(number)] for number in observations["mission"][:, 0]]
        rows = [
            self._reader.read({"image": picture, "mission": mission}, {})
            for picture, mission in zip(pictures, missions, strict=True)
        ]
        return self._agent[0].fused(rows)


# Learning curves


class EvaluateOurs(TrainerCallback):
    def __init__(self, trainer: DQNTrainer, every: int, curve: Curve) -> None:
        self.trainer, self.every, self.curve = trainer, every, curve

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (steps := LEARNING_STARTS + STEPS_PER_UPDATE * state.global_step) % self.every == 0:
            head = self.trainer.agent.q_head
            self.curve.append({"steps": steps} | evaluate(self.trainer.agent, head))


class EvaluateTheirs(BaseCallback):
    def __init__(self, agent: VLMAgent, every: int, curve: Curve) -> None:
        super().__init__()
        self.agent, self.every, self.curve = agent, every, curve

    def _on_step(self) -> bool:
        if self.num_timesteps > LEARNING_STARTS and self.num_timesteps % self.every == 0:
            self.curve.append({"steps": self.num_timesteps} | evaluate(self.agent, self.model.q_net))
        return True
