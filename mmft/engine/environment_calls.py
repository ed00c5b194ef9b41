"""Calls of one environment, kept apart from the run: a time limit, what they return, and what they showed.

Python cannot stop a thread. A call that outlives its limit is left behind; should it come back after all, its
thread closes the environment and ends.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

import gymnasium
import numpy as np

logger = logging.getLogger(__name__)

Environment = gymnasium.Env[Any, Any]
Reset = tuple[Any, dict[str, Any]]
"""(observation, info)"""
Returned = tuple[Any, Any, bool, bool, dict[str, Any]]
"""(observation, reward, terminated, truncated, info), the reward as the environment gave it"""


class GuardedEnvironment:
    """An environment whose resets and steps have a time limit and return what gymnasium asks for.

    With a time limit all calls, the one that makes it too, run in one thread: some simulators ask for that.
    """

    def __init__(self, make: Callable[[], Environment], time_limit: float | None, name: str) -> None:
        self._time_limit = time_limit
        self._thread = None if time_limit is None else _CallThread(name)
        self._is_open = True
        try:
            self._env = make() if self._thread is None else self._thread.call(make, None)
        except BaseException:
            self._stop()
            raise
        self.observation_space: gymnasium.Space[Any] = self._env.observation_space
        self.action_space: gymnasium.Space[Any] = self._env.action_space

    def reset(self, seed: int) -> Reset:
        """The start of an episode.

        Raises:
            TimeoutError: the call is left behind; close this environment.
            TypeError: it returned something else.
        """
        returned = self._call(lambda: self._env.reset(seed=seed))
        observation, info = _unpacked("reset", returned, ("observation", "info"))
        return observation, info

    def step(self, action: int) -> Returned:
        """One step; raises as `reset` does."""
        returned = self._call(lambda: self._env.step(action))
        parts = ("observation", "reward", "terminated", "truncated", "info")
        observation, reward, terminated, truncated, info = _unpacked("step", returned, parts)
        return observation, reward, bool(terminated), bool(truncated), info

    def close(self) -> None:
        """Closes it, within the time limit; what goes wrong in that is logged."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._call(self._env.close)
        except Exception as error:
            logger.info("an environment could not be closed: %s: %s", type(error).__name__, error)
        self._stop()

    def _call(self, function: Callable[[], Any]) -> Any:
        if self._thread is None:
            return function()
        try:
            return self._thread.call(function, self._time_limit)
        except _NoAnswer:
            self._is_open = False
            self._thread.call_later(self._env.close)
            self._stop()
            raise TimeoutError(f"no answer within the `time_limit` of {self._time_limit:g} s") from None

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


class _NoAnswer(Exception):
    """A call outlived its limit; never leaves this module."""


class _CallThread:
    """Runs calls one after the other."""

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        # A daemon, so that an environment that never returns cannot keep the program from ending.
        Thread(target=self._work, name=name, daemon=True).start()

    def call(self, function: Callable[[], Any], time_limit: float | None) -> Any:
        """What the function returns or raises.

        Raises:
            _NoAnswer: nothing within the limit; the function may still be running.
        """
        future = self.call_later(function)
        # A TimeoutError of `future.result` could be one of the environment's own.
        if not concurrent.futures.wait([future], time_limit).done:
            raise _NoAnswer
        return future.result()

    def call_later(self, function: Callable[[], Any]) -> Future[Any]:
        """The same without waiting."""
        future: Future[Any] = Future()
        self._tasks.put((function, future))
        return future

    def stop(self) -> None:
        """Ends the thread after the calls it was given."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            function, future = task
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)


def _unpacked(call: str, returned: Any, parts: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(returned, tuple) or len(returned) != len(parts):
        what = f"{len(returned)} values" if isinstance(returned, tuple) else type(returned).__name__
        raise TypeError(f"`{call}` returned {what}, not the tuple ({', '.join(parts)})")
    if not isinstance(returned[-1], dict):
        raise TypeError(f"`{call}` returned {type(returned[-1]).__name__} as `info`, not a dict")
    return returned


def observation_digest(observation: Any) -> str:
    """A digest of an observation, the same in every process.

    Arrays, texts and numbers inside mappings and sequences count; of anything else its type alone does.
    """
    state = hashlib.blake2b(digest_size=16)
    for part in _parts(observation):
        state.update(len(part).to_bytes(8, "big") + part)
    return state.hexdigest()


def _parts(value: Any) -> list[bytes]:
    """What a value is made of, each kind announced so that no two values are read alike."""
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: repr(item[0]))
        entries = [part for key, entry in items for part in (repr(key).encode(), *_parts(entry))]
        return [f"mapping {len(items)}".encode(), *entries]
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        array = np.asarray(value)
        return [f"array {array.dtype.str} {array.shape}".encode(), array.tobytes()]
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return [repr(value).encode()]
    if isinstance(value, Sequence | np.ndarray):
        return [f"sequence {len(value)}".encode(), *(part for entry in value for part in _parts(entry))]
    return [type(value).__qualname__.encode()]
