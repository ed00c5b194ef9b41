"""Several environments driven side by side: seeds, episodes, restarts of those that fail, and resuming.

An episode is a function of its seed and its actions, so a state holds nothing else: a resumed pool plays the
running episodes again up to where they were. Left out on purpose: processes and vectorised environments.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from threading import TIMEOUT_MAX
from typing import Any

import numpy as np

from mmft.engine.environment_calls import Environment, GuardedEnvironment, Returned, observation_digest
from mmft.errors import ConfigError, EnvError

logger = logging.getLogger(__name__)

FAILURES_KEPT = 20


@dataclass(frozen=True, slots=True)
class Step:
    """What one environment did with one action.

    An environment may write the next observation into the arrays of this one; read it before the next step.
    """

    observation: Any
    """After the action: the final one where `last`."""
    info: dict[str, Any]
    reward: float
    terminated: bool
    last: bool
    """Terminated, truncated or failed: the episode is over."""
    failed: bool
    """The environment raised or hung: there is no observation (None) and no reward (0)."""
    next_observation: Any
    """Where to act next: `observation`, or the start of the next episode where `last`."""
    next_info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode that came to its end; those cut off by a failure have none."""

    total_reward: float
    length: int
    success: bool | None
    """What the environment says at the end (`is_success`), if it says so."""
    optimal_return: float | None
    """What the environment says at the reset, if it does."""
    environment: int
    number: int


def episode_seed(seed: int, environment: int, episode: int) -> int:
    """The seed of an episode: 31 bits, which simulators written in C take too."""
    return int(np.random.SeedSequence([seed, environment, episode]).generate_state(1)[0] >> 1)


class EnvironmentPool:
    """Environments of one kind, each in an episode of its own; an episode that ends is followed by the next.

    With several environments, one that raises, hangs or returns something else than gymnasium asks for is
    closed, made anew and goes on with its next episode.
    """

    def __init__(
        self,
        make: Callable[[], Environment],
        num_envs: int,
        *,
        name: str,
        seed: int,
        first: int = 0,
        time_limit: float | None = None,
        max_restarts: int = 10,
    ) -> None:
        """Make the environments.

        Args:
            make: makes one of them.
            num_envs: how many.
            name: what errors call them.
            seed: with the number of the environment and of the episode it gives the seed of an episode.
            first: number of the first one, where other processes have pools of their own.
            time_limit: seconds that one reset or step may take; with it each environment gets a thread.
            max_restarts: failures of the whole pool that are made good, before one is an error.

        Raises:
            EnvError: the environments have different spaces.
        """
        for argument, value, least in (("num_envs", num_envs, 1), ("seed", seed, 0), ("first", first, 0)):
            if value < least:
                raise ConfigError(f"`{argument}` must be at least {least}; got {value}.")
        if time_limit is not None and not 0 < time_limit <= TIMEOUT_MAX:
            raise ConfigError(
                f"`time_limit` must be above 0 seconds and finite; got {time_limit}. None is no limit."
            )
        self.num_envs, self.name, self.first = num_envs, name, first
        self.num_restarts = 0
        self.failures: list[str] = []
        """The last failures, in words."""
        self._make, self._seed, self._time_limit, self._max_restarts = make, seed, time_limit, max_restarts
        self._finished: list[Episode] = []
        self._logged: set[int] = set()
        self._slots: list[_Slot] = []
        try:
            for number in range(first, first + num_envs):
                self._slots.append(_Slot(number, self._made(number)))
            self.observation_space = self._slots[0].env.observation_space
            self.action_space = self._slots[0].env.action_space
            for slot in self._slots:
                self._check_spaces(slot)
        except BaseException:
            self.close()
            raise

    def reset(self) -> list[tuple[Any, dict[str, Any]]]:
        """Observation and info that each environment waits with; starts the first episodes if none runs."""
        for slot in self._slots:
            if slot.episode < 0:
                self._begin(slot, 0)
        return [(slot.observation, slot.info) for slot in self._slots]

    def step(self, actions: Sequence[int]) -> list[Step]:
        """One action for each environment, in order."""
        if len(actions) != self.num_envs:
            raise ValueError(f"`actions` has {len(actions)} entries for {self.num_envs} environments.")
        if any(slot.episode < 0 for slot in self._slots):
            raise ValueError("call `reset` before the first `step`.")
        return [self._step(slot, int(action)) for slot, action in zip(self._slots, actions, strict=True)]

    @property
    def episodes(self) -> list[int]:
        """The number of the episode that each environment is in."""
        return [slot.episode for slot in self._slots]

    def finished(self) -> list[Episode]:
        """The episodes that ended since the last call, in the order in which they did."""
        finished, self._finished = self._finished, []
        return finished

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on, as plain values."""
        return {
            "seed": self._seed,
            "first": self.first,
            "num_restarts": self.num_restarts,
            "failures": list(self.failures),
            "finished": [dataclasses.asdict(episode) for episode in self._finished],
            "environments": [
                {
                    "episode": slot.episode,
                    "actions": list(slot.actions),
                    "digest": observation_digest(slot.observation),
                }
                for slot in self._slots
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Plays the saved episodes up to where they were.

        Raises:
            ConfigError: the state belongs to other environments or another seed.
            EnvError: the same seed and actions led an environment somewhere else.
        """
        saved = (state["seed"], state["first"], len(state["environments"]))
        if saved != (self._seed, self.first, self.num_envs):
            raise ConfigError(
                f"the state is of {saved[2]} environments from number {saved[1]} on, seed {saved[0]}; these "
                f"are {self.num_envs} from number {self.first} on, seed {self._seed}. Resume with the same."
            )
        self.num_restarts, self.failures = state["num_restarts"], list(state["failures"])
        self._finished = [Episode(**episode) for episode in state["finished"]]
        for slot, saved_slot in zip(self._slots, state["environments"], strict=True):
            self._replay(slot, saved_slot)

    def close(self) -> None:
        """Closes all environments; what goes wrong in that is logged."""
        while self._slots:
            self._slots.pop().env.close()

    def _step(self, slot: _Slot, action: int) -> Step:
        try:
            returned = slot.take(action)
        except Exception as error:
            self._restart(slot, error)
            return Step(None, {}, 0.0, False, True, True, slot.observation, slot.info)
        observation, reward, terminated, truncated, info = self._counted(slot, returned)
        if not (terminated or truncated):
            slot.observation, slot.info = observation, info
            return Step(observation, info, reward, terminated, False, False, observation, info)
        # The next episode may be written into the same arrays.
        observation, info = copy.deepcopy(observation), dict(info)
        self._finished.append(slot.ended(info))
        self._begin(slot, slot.episode + 1)
        return Step(observation, info, reward, terminated, True, False, slot.observation, slot.info)

    def _counted(self, slot: _Slot, returned: Returned) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """What a step returned, its reward checked and added to the episode's."""
        observation, reward, terminated, truncated, info = returned
        reward = reward.item() if getattr(reward, "ndim", None) == 0 else reward
        # A failure may be bad luck; a wrong reward is a mistake that no restart mends.
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise EnvError(f"{self._where(slot)}: the reward is {reward!r}. Return a finite number.")
        slot.total_reward += float(reward)
        return observation, float(reward), terminated, truncated, info

    def _begin(self, slot: _Slot, episode: int) -> None:
        try:
            slot.start(episode, self._seed)
        except Exception as error:
            self._restart(slot, error)

    def _restart(self, slot: _Slot, error: Exception) -> None:
        """Makes a failed environment anew, in its next episode.

        Raises:
            EnvError: it is the only one, failures are too many, or it fails again at once.
        """
        where, told = self._where(slot), f"{type(error).__name__}: {error}"
        if self.num_envs == 1:
            raise EnvError(
                f"{where}: {told}. Repair it; of several environments (`num_envs`) a failed one is made anew."
            ) from error
        if self.num_restarts >= self._max_restarts:
            raise EnvError(
                f"{where}: {told}. {self.num_restarts} restarts (`max_restarts`) are used up. Repair the "
                f"environment, or allow more. Before it: {'; '.join(self.failures[-3:]) or 'none'}."
            ) from error
        self._record(slot, f"{where}: {told}")
        slot.env.close()
        try:
            slot.env = self._made(slot.number)
            slot.start(slot.episode + 1, self._seed)
        except Exception as again:
            raise EnvError(
                f"{self._where(slot)}: failed again as soon as it was made anew: {type(again).__name__}: "
                f"{again}. What it failed with before: {told}. Repair the environment."
            ) from again
        self._check_spaces(slot)

    def _record(self, slot: _Slot, failure: str) -> None:
        self.num_restarts += 1
        self.failures = [*self.failures, failure][-FAILURES_KEPT:]
        if slot.number not in self._logged:
            self._logged.add(slot.number)
            logger.warning(
                "%s. It is made anew and goes on with its next episode; further failures of this one are "
                "counted only.",
                failure,
            )

    def _replay(self, slot: _Slot, saved: Mapping[str, Any]) -> None:
        if saved["episode"] < 0:
            slot.episode = -1
            return
        cause, ended = None, False
        try:
            slot.start(saved["episode"], self._seed)
            for action in saved["actions"]:
                slot.observation, _, terminated, truncated, slot.info = self._counted(slot, slot.take(action))
                ended = ended or terminated or truncated
        except Exception as error:
            cause = error
        if cause is not None or ended or observation_digest(slot.observation) != saved["digest"]:
            told = "" if cause is None else f" ({type(cause).__name__}: {cause})"
            raise EnvError(
                f"{self._where(slot)}: it is not a function of seed and actions, for the saved ones did not "
                f"lead to the saved observation{told}; no run can go on in the middle of its episode. Let it "
                "take all randomness from `self.np_random`, which `super().reset(seed=seed)` seeds, and "
                "keep nothing from one episode to the next."
            ) from cause

    def _made(self, number: int) -> GuardedEnvironment:
        return GuardedEnvironment(self._make, self._time_limit, f"{self.name} {number}")

    def _check_spaces(self, slot: _Slot) -> None:
        for kind in ("observation_space", "action_space"):
            here, expected = getattr(slot.env, kind), getattr(self, kind)
            if here != expected:
                raise EnvError(
                    f"environment {self.name!r}, number {slot.number}: `{kind}` is {here}, but {expected} in "
                    f"number {self.first}. All must have the same."
                )

    def _where(self, slot: _Slot) -> str:
        step = len(slot.actions)
        return f"environment {self.name!r}, number {slot.number}, episode {slot.episode}, step {step}"


@dataclass(slots=True)
class _Slot:
    """One environment and the episode it is in."""

    number: int
    env: GuardedEnvironment
    episode: int = -1
    actions: list[int] = field(default_factory=list)
    total_reward: float = 0.0
    optimal_return: float | None = None
    observation: Any = None
    info: dict[str, Any] = field(default_factory=dict)

    def start(self, episode: int, seed: int) -> None:
        self.episode, self.actions, self.total_reward, self.optimal_return = episode, [], 0.0, None
        self.observation, self.info = self.env.reset(episode_seed(seed, self.number, episode))
        optimal = self.info.get("optimal_return")
        self.optimal_return = None if optimal is None else float(optimal)

    def take(self, action: int) -> Returned:
        self.actions.append(action)
        return self.env.step(action)

    def ended(self, info: Mapping[str, Any]) -> Episode:
        success = info.get("is_success")
        return Episode(
            self.total_reward,
            len(self.actions),
            None if success is None else bool(success),
            self.optimal_return,
            self.number,
            self.episode,
        )
