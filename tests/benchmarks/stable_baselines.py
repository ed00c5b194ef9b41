"""stable-baselines3's DQN on the features that an agent of mmft learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from mmft.data.normalize import StandardScaler
from mmft.engine.observations import Observation, ObservationReader
from mmft.engine.state_encoder import StateEncoder
from mmft.models.backbone import load_backbone

RANDOM_STEPS = 1000


class FeatureObservations(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Observations become standardised last hidden states, each encoded when it is seen."""

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], *, cached: bool, seed: int) -> None:
        super().__init__(make())
        self.reader = ObservationReader(
            self.env.observation_space, self.env.action_space, environment="benchmark"
        )
        backbone = load_backbone("mmft/tiny-captioner", trainable=())
        self.encoder = StateEncoder(backbone, ["fused"], pooled=True, cache_bytes=2**31 if cached else 0)
        self.scaler = StandardScaler(backbone.hidden_size)
        self.observation_space = spaces.Box(-np.inf, np.inf, (backbone.hidden_size,), np.float32)
        self._take_statistics(seed)

    def of(self, observations: Sequence[Observation]) -> Tensor:
        """(B, D) what the heads of both systems read."""
        with torch.no_grad():
            features: Tensor = self.scaler(self.encoder.encode(observations).embeddings["fused"][:, 0])
        return features

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        return self._features(observation, info), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(int(action))
        return self._features(observation, info), float(reward), terminated, truncated, info

    def _features(self, observation: Any, info: dict[str, Any]) -> Any:
        return self.of([self.reader.read(observation, info)])[0].numpy()

    def _take_statistics(self, seed: int) -> None:
        """The statistics of random play, as mmft takes them before its first update."""
        draw = np.random.default_rng(seed)
        observation, info = self.env.reset(seed=seed)
        seen = []
        for _ in range(RANDOM_STEPS):
            seen.append(self.reader.read(observation, info))
            observation, _, terminated, truncated, info = self.env.step(int(draw.integers(4)))
            if terminated or truncated:
                observation, info = self.env.reset()
        with torch.no_grad():
            self.scaler.update(self.encoder.encode(seen).embeddings["fused"][:, 0])


class _Evaluating(BaseCallback):
    """Calls `evaluate(steps, q_network)` every so many steps."""

    def __init__(self, every: int, evaluate: Callable[[int, Any], None]) -> None:
        super().__init__()
        self.every, self.evaluate = every, evaluate

    def _on_step(self) -> bool:
        model: Any = self.model
        past = self.num_timesteps - model.learning_starts
        if past > 0 and past % self.every == 0:
            with torch.no_grad():
                self.evaluate(self.num_timesteps, model.q_net.q_net)
        return True


def train_stable_baselines(
    env: FeatureObservations,
    settings: dict[str, Any],
    steps: int,
    seed: int,
    every: int,
    evaluate: Callable[[int, Any], None],
) -> None:
    """One training run with the settings of both systems."""
    model = DQN(
        "MlpPolicy",
        env,
        learning_rate=settings["learning_rate"],
        buffer_size=settings["buffer_size"],
        learning_starts=settings["learning_starts"],
        batch_size=settings["batch_size"],
        gamma=settings["gamma"],
        train_freq=settings["train_freq"],
        gradient_steps=1,
        # It counts steps in the environment.
        target_update_interval=settings["target_update_interval"] * settings["train_freq"],
        exploration_fraction=settings["exploration_fraction"],
        exploration_final_eps=0.05,
        max_grad_norm=settings["max_grad_norm"],
        policy_kwargs={"net_arch": settings["hidden_sizes"]},
        seed=seed,
        device="cpu",
    )
    model.learn(steps, callback=_Evaluating(every, evaluate))
