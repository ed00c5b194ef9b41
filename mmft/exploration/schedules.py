"""A number that changes over a run, such as the share of random actions.

A schedule is a pure function of the step: it keeps no state, so a resumed run needs none.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from mmft.errors import ConfigError

KINDS = ("constant", "linear", "exponential", "cosine")


@dataclass(frozen=True, slots=True)
class Schedule:
    """From `start` to `end` over `duration` steps, and `end` ever after.

        constant       start, always
        linear         start + x * (end - start),   x = step / duration
        exponential    start * (end / start)^x:   each step changes it by the same factor
        cosine         linear in (1 - cos(pi * x)) / 2:   slow at both ends

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    kind: str
    """One of `KINDS`."""
    start: float
    """The value at step 0."""
    end: float
    """The value from step `duration` on; `constant` never gets there."""
    duration: int
    """Steps from `start` to `end`; 0 is `end` from the first step on."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = difflib.get_close_matches(self.kind, KINDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"`kind` must be one of {', '.join(KINDS)}; got {self.kind!r}.{hint}")
        for name, value in (("start", self.start), ("end", self.end)):
            if not math.isfinite(value):
                raise ConfigError(f"`{name}` of a schedule must be a finite number; got {value}.")
        if self.duration < 0:
            raise ConfigError(
                f"`duration` must be >= 0 steps; got {self.duration}. 0 is `end` from the first step on."
            )
        if self.kind == "exponential" and min(self.start, self.end) <= 0:
            raise ConfigError(
                f"`kind: exponential` needs `start` and `end` above 0; got {self.start} and {self.end}. "
                "Choose a small number in place of 0, or `kind: linear`."
            )

    def at(self, step: int) -> float:
        """The value at `step`, exactly `start` at 0 and exactly `end` from `duration` on."""
        if self.kind == "constant":
            return self.start
        if step >= self.duration:
            return self.end
        progress = step / self.duration
        if self.kind == "exponential":
            return self.start * (self.end / self.start) ** progress
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + progress * (self.end - self.start)
