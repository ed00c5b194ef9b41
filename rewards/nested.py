"""The parts of a reward that is made of rewards: called, checked, logged and kept by name.

A part may itself prepare, keep a state or be asynchronous; whoever holds the parts passes that on.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

Reward = Callable[..., Any]
Values = list[float | None]
Gather = Callable[[Any], list[Any]]
"""An object of this process to those of all processes; collective, and called once by a `settle`."""
LARGEST = 3.4028235e38
"""Trainers keep rewards in single precision; the squares of such numbers are summed without overflow."""


def alone(found: Any) -> list[Any]:
    """The `Gather` of a single process."""
    return [found]


def is_async(reward: Reward) -> bool:
    """Whether calling `reward`, a function, a partial or an object, gives a coroutine."""
    while isinstance(reward, partial):
        reward = reward.func
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)


def is_two_phase(reward: Reward) -> bool:
    """Whether the reward needs evidence from all processes (`evidence`, `settle`)."""
    return hasattr(reward, "evidence") and hasattr(reward, "settle")


def _as_here(work: Callable[[], Any]) -> Callable[[], Any]:
    """`work` for another thread, with the grad mode and the current GPU of this one.

    Both belong to a thread. Where torch is not loaded there is nothing to hand over, nor a reason to load it.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return work
    grad = torch.is_grad_enabled()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def work_as_here() -> Any:
        if device is not None:
            torch.cuda.set_device(device)
        with torch.set_grad_enabled(grad):
            return work()

    return work_as_here


class Parts:
    """Rewards by name, on behalf of the reward `owner` that combines them."""

    def __init__(self, owner: str, rewards: Mapping[str, Reward]) -> None:
        """Refuse what cannot be a part."""
        self.owner = owner
        self.rewards = dict(rewards)
        for name, reward in self.rewards.items():
            if not callable(reward):
                raise ValueError(f"`{name}` of the {owner} reward must be a reward; got {reward!r}.")
            if hasattr(reward, "token_rewards"):
                raise ValueError(
                    f"`{name}` of the {owner} reward pays for single tokens, which would be lost inside "
                    "another reward. List it beside this one, with a weight of its own."
                )

    @property
    def is_async(self) -> bool:
        """Whether some part has to be awaited."""
        return any(map(is_async, self.rewards.values()))

    def prepare(self, column: Callable[[str], list[Any] | None]) -> None:
        """Lets the parts look at the training rows."""
        for reward in self.rewards.values():
            if hasattr(reward, "prepare"):
                reward.prepare(column)

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts that have one."""
        named = self.rewards.items()
        return {name: reward.state_dict() for name, reward in named if hasattr(reward, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each part its state back.

        Raises:
            ValueError: The state is of other parts.
        """
        for name, part_state in state.items():
            reward: Any = self.rewards.get(name)
            if not hasattr(reward, "load_state_dict"):
                raise ValueError(
                    f"the saved state of the {self.owner} reward has a part {name!r}, which "
                    f"{'keeps no state' if name in self.rewards else 'is missing'} now. Its parts are "
                    f"{', '.join(self.rewards)}."
                )
            reward.load_state_dict(part_state)

    def ask(self, prompts: Any, completions: Sequence[Any], columns: dict[str, Any]) -> dict[str, Any]:
        """What every part says of the completions: numbers or None, evidence where a part is two-phase."""
        return {name: self._ask(name, prompts, completions, columns) for name in self.rewards}

    async def ask_async(
        self, prompts: Any, completions: Sequence[Any], columns: dict[str, Any]
    ) -> dict[str, Any]:
        """As `ask`; parts that wait for a service wait at the same time, and others work meanwhile."""
        waiting = [name for name, reward in self.rewards.items() if is_async(reward)]
        others = [name for name in self.rewards if name not in waiting]

        def work() -> dict[str, Any]:
            return {name: self._ask(name, prompts, completions, columns) for name in others}

        found, *answers = await asyncio.gather(
            asyncio.to_thread(_as_here(work)),
            *(self._wait(name, prompts, completions, columns) for name in waiting),
        )
        return found | dict(zip(waiting, answers, strict=True))

    def _ask(self, name: str, prompts: Any, completions: Sequence[Any], columns: dict[str, Any]) -> Any:
        reward: Any = self.rewards[name]
        arguments = self._arguments(name, columns)
        if is_two_phase(reward):
            return reward.evidence(prompts=prompts, completions=completions, **arguments)
        return self._checked(
            name, reward(prompts=prompts, completions=completions, **arguments), len(completions)
        )

    async def _wait(
        self, name: str, prompts: Any, completions: Sequence[Any], columns: dict[str, Any]
    ) -> Any:
        reward: Any = self.rewards[name]
        arguments = self._arguments(name, columns)
        if is_two_phase(reward):
            return await reward.evidence(prompts=prompts, completions=completions, **arguments)
        answer = await reward(prompts=prompts, completions=completions, **arguments)
        return self._checked(name, answer, len(completions))

    def _arguments(self, name: str, columns: dict[str, Any]) -> dict[str, Any]:
        """The columns, with logs that put the part's name in front of what the part logs."""
        arguments = dict(columns)
        own = f"{getattr(self.rewards[name], '__name__', name)}/"
        if log_extra := columns.get("log_extra"):
            arguments["log_extra"] = lambda column, values: log_extra(f"{name}/{column}", values)
        if log_metric := columns.get("log_metric"):
            arguments["log_metric"] = lambda metric, value: log_metric(
                f"{self.owner}/{name}/{metric.removeprefix(own)}", value
            )
        return arguments

    def _checked(self, name: str, answer: Any, count: int) -> Values:
        """One finite number or None per completion; here, where an error can still name the part."""
        if isinstance(answer, (str, bytes, dict)) or not hasattr(answer, "__len__"):
            raise ValueError(
                f"`{name}` of the {self.owner} reward returned {answer!r}; return a number or None each."
            )
        if len(answer) != count:
            raise ValueError(
                f"`{name}` of the {self.owner} reward returned {len(answer)} rewards for {count} completions."
            )
        values = [value.item() if hasattr(value, "item") else value for value in answer]
        for index, value in enumerate(values):
            if value is not None and not (isinstance(value, Real) and abs(float(value)) <= LARGEST):
                raise ValueError(
                    f"`{name}` of the {self.owner} reward returned {value!r} for completion {index}. "
                    "Return a finite number, or None for cannot judge."
                )
        return [None if value is None else float(value) for value in values]

    def log(self, name: str, values: Values, columns: dict[str, Any]) -> None:
        """Logs one number per completion, and the mean of those that are not None."""
        judged = [value for value in values if value is not None]
        if log_extra := columns.get("log_extra"):
            log_extra(name, values)
        if judged and (log_metric := columns.get("log_metric")):
            log_metric(f"{self.owner}/{name}", math.fsum(judged) / len(judged))


class MadeOfParts:
    """A reward made of others: what they learn from the data and keep goes through it."""

    parts: Parts

    def prepare(self, column: Callable[[str], list[Any] | None]) -> None:
        """Lets the parts look at the training rows."""
        self.parts.prepare(column)

    def state_dict(self) -> dict[str, Any]:
        """What the parts keep."""
        return self.parts.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives it back to them."""
        self.parts.load_state_dict(state)
