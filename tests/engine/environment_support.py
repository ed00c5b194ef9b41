"""Small environments that do what their owner tells them: count, fail, hang, lie."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from mmft.engine.environment_pool import EnvironmentPool, Step

Hook = Callable[["Counting"], Any]

BOOM = ValueError("boom")


def pool_of(make: Any, num_envs: int = 2, **settings: Any) -> EnvironmentPool:
    return EnvironmentPool(make, num_envs, **{"name": "counting", "seed": 7} | settings)


def plain(value: Any) -> Any:
    """Steps and observations as values that can be compared."""
    if isinstance(value, Step):
        return [plain(getattr(value, name)) for name in Step.__slots__]
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size < 10 else value.tobytes()
    return value


class Counting(gymnasium.Env[Any, Any]):
    """Shows [a number drawn at the reset, actions added up, steps]; an episode has as many steps as `length`.

    `on_step` and `on_reset` are called before anything else; what `on_step` returns, if it is not None, is
    what the step returns.
    """

    def __init__(
        self,
        length: int = 3,
        on_step: Hook | None = None,
        on_reset: Hook | None = None,
        num_actions: int = 10,
    ) -> None:
        self.length, self.on_step, self.on_reset = length, on_step, on_reset
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Discrete(num_actions)
        self.seeds: list[int | None] = []
        self.threads: set[int] = {threading.get_ident()}
        self.shown = np.zeros(3)
        self.info: dict[str, Any] = {}
        self.num_closed = 0
        self.closed = threading.Event()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.threads.add(threading.get_ident())
        if self.on_reset is not None:
            self.on_reset(self)
        # The same array and the same dict each time, as environments may do.
        self.shown[:] = self.np_random.random(), 0, 0
        self.info.clear()
        self.info["optimal_return"] = self.length
        return self.shown, self.info

    def step(self, action: int) -> Any:
        self.threads.add(threading.get_ident())
        returned = None if self.on_step is None else self.on_step(self)
        if returned is not None:
            return returned
        self.shown[1:] += action, 1
        over = self.shown[2] == self.length
        self.info.clear()
        self.info |= {"is_success": action == 1} if over else {}
        return self.shown, float(action), bool(over and action), bool(over and not action), self.info

    @property
    def num_steps(self) -> int:
        """Steps of this episode so far."""
        return int(self.shown[2])

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.num_closed += 1
        self.closed.set()


class Maker:
    """Makes environments and remembers them; `settings[i]` are those of the i-th one made, else `others`."""

    def __init__(self, *settings: dict[str, Any], **others: Any) -> None:
        self.settings, self.others = settings, others
        self.made: list[Counting] = []

    def __call__(self) -> Counting:
        chosen = self.settings[len(self.made)] if len(self.made) < len(self.settings) else self.others
        self.made.append(Counting(**chosen))
        return self.made[-1]


def failing(at: int, error: BaseException, seed_of: int | None = None) -> Hook:
    """Raises when `at` steps were made; only in the environment's reset number `seed_of` if that is given."""

    def hook(env: Counting) -> None:
        if env.num_steps == at and seed_of in (None, len(env.seeds) - 1):
            raise error

    return hook
