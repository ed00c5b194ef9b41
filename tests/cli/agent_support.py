"""The settings of a small run of an agent, and environments that tests of its commands name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.cli.support import write_config

GRID = "mmft/FindObject-v0"
GRID_ARGUMENTS = {"size": 2, "wrong_reward": 0.0, "jitter": False, "colours": ["red"]}
AGENT: dict[str, Any] = {
    "model_name_or_path": "mmft/tiny-captioner",
    "env": GRID,
    "env_kwargs": GRID_ARGUMENTS,
    "num_envs": 4,
    "eval_episodes": 12,
    "hidden_sizes": [16],
    "learning_rate": 1e-2,
    "logging_steps": 5,
    "per_device_train_batch_size": 16,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "num_samples": 2,
    "seed": 3,
}
LENGTHS: dict[str, dict[str, Any]] = {
    "dqn": {"total_timesteps": 120, "learning_starts": 40, "buffer_size": 200, "exploration_fraction": 0.5},
    "ppo": {"total_timesteps": 128, "warm_up_steps": 32, "num_mini_batches": 2, "num_ppo_epochs": 2},
    "a2c": {"total_timesteps": 96, "warm_up_steps": 32},
}
"""What each algorithm calls how long it runs."""
BROKEN = "tests.cli.agent_support:Broken"


def agent_config(folder: Path, algorithm: str = "dqn", **changes: Any) -> list[str]:
    """`--config` and a recipe of that algorithm in the folder."""
    settings = AGENT | LENGTHS[algorithm] | {"algorithm": algorithm, "output_dir": str(folder / "run")}
    return ["--config", write_config(folder, settings | changes)]


class Broken(gymnasium.Env[dict[str, Any], int]):
    """Always shows the same; a share of its steps fails."""

    def __init__(self, *, share: float = 1.0, numbers: int = 0) -> None:
        self.action_space = spaces.Discrete(2)
        shown: dict[str, Any] = {"view": spaces.Box(0, 255, (32, 32, 3), np.uint8)}
        if numbers:
            shown["numbers"] = spaces.Box(-1, 1, (numbers,), np.float32)
        self.observation_space = spaces.Dict(shown)
        self._share, self._numbers, self._num_steps = share, numbers, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._num_steps = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._num_steps += 1
        if self.np_random.random() < self._share:
            raise RuntimeError("out of order")
        return self._seen(), 0.0, self._num_steps >= 4, False, {}

    def _seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = {"view": np.zeros((32, 32, 3), np.uint8)}
        return seen | ({"numbers": np.zeros(self._numbers, np.float32)} if self._numbers else {})
