"""Running statistics of a reward over samples and processes, and the two scalings that are made from them.

Plain Python on purpose: a handful of numbers per batch, exact when saved as JSON, no tensor library needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SCALINGS = ("min-max", "z-score")
EPSILON = 1e-8


@dataclass(slots=True)
class RunningStatistics:
    """Count, mean, spread and range of all numbers seen, without keeping them.

    Example:
        >>> from rewards import RunningStatistics
        >>> seen = RunningStatistics.of([1.0, 2.0, None])
        >>> seen.merge(RunningStatistics.of([3.0, 6.0]))  # of another process
        >>> seen.count, seen.mean, seen.minimum, seen.maximum
        (4, 3.0, 1.0, 6.0)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """M2, the sum of squared distances from the mean."""
    minimum: float | None = None
    maximum: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> RunningStatistics:
        """Those of one batch, in two passes; None and NaN (cannot judge) are left out.

        Raises:
            ValueError: A value is infinite, which no later value could undo.
        """
        kept = [float(value) for value in values if value is not None and not math.isnan(value)]
        if not all(map(math.isfinite, kept)):
            raise ValueError(
                f"`values` holds an infinite number: {kept}. Use None for what cannot be judged."
            )
        if not kept:
            return cls()
        mean = math.fsum(kept) / len(kept)
        squares = math.fsum((value - mean) ** 2 for value in kept)
        return cls(len(kept), mean, squares, min(kept), max(kept))

    @property
    def std(self) -> float:
        """sqrt(M2 / n), of the numbers as a population; 0 for none or one."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def update(self, values: Iterable[float | None]) -> None:
        """Take in a batch."""
        self.merge(RunningStatistics.of(values))

    def merge(self, other: RunningStatistics) -> None:
        """Take in what others have seen (Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115).

        With d = mean_b - mean_a and n = n_a + n_b:

            mean = mean_a + d * n_b / n,    M2 = M2_a + M2_b + d^2 * n_a * n_b / n

        Up to rounding the result does not depend on how the numbers were dealt to batches and processes.
        """
        if not other.count:
            return
        count, distance = self.count + other.count, other.mean - self.mean
        self.squares += other.squares + distance**2 * self.count * other.count / count
        self.mean += distance * other.count / count
        self.minimum = min(_numbers(self.minimum, other.minimum))
        self.maximum = max(_numbers(self.maximum, other.maximum))
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        """For JSON, which gives every bit back."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what was saved."""
        for name in asdict(self):
            setattr(self, name, state[name])


def min_max(value: float, statistics: RunningStatistics) -> float:
    """(R - min) / (max - min).

    In [0, 1] for every value that the statistics have seen; not clipped beyond, so that a reward that
    outgrows a frozen range still shows it. A constant has no range: R - min, which is 0 as long as it stays
    constant.
    """
    low, high = statistics.minimum or 0.0, statistics.maximum or 0.0
    return (value - low) / ((high - low) or 1.0)


def z_score(value: float, statistics: RunningStatistics) -> float:
    """(R - mean) / (std + 1e-8).

    A constant has no spread: R - mean, which is 0 as long as it stays constant. Dividing by 1e-8 alone would
    turn the first other value into a hundred million.
    """
    spread = statistics.std
    return (value - statistics.mean) / (spread + EPSILON if spread else 1.0)


class RunningScale:
    """One scaling of one reward, for training and for held-out samples apart.

    Training samples are scaled by the statistics of all training samples so far, those of the present batch
    on all processes among them.

    Held-out samples have statistics of their own. They take in every held-out batch until they are frozen,
    which happens at the first training batch after them; from then on they never change. So everything that
    is evaluated after training began is on one scale, that of the first evaluation. The first evaluation
    itself is scored while this scale forms: each of its batches by what was seen up to it. Its mean may
    therefore differ from a second look at the same samples by about the standard error of their mean;
    for differences finer than that compare the unscaled values, which are logged as well.
    """

    def __init__(self, kind: str) -> None:
        """Of `kind` "min-max" or "z-score"."""
        if kind not in SCALINGS:
            raise ValueError(
                f"`scaling` must be one of {', '.join(map(repr, SCALINGS))} or None; got {kind!r}."
            )
        self.kind = kind
        self.training = RunningStatistics()
        self.held_out = RunningStatistics()
        self.is_frozen = False

    def share(self, values: Iterable[float | None]) -> dict[str, Any]:
        """What this process tells the others: what it has seen so far, and what is new."""
        return {"before": self.state_dict(), "batch": RunningStatistics.of(values).state_dict()}

    def take_in(self, shares: Sequence[dict[str, Any]], *, training: bool) -> None:
        """Update from the shares of all processes, in the same order everywhere.

        Processes agree on what came before, except for one that had to leave a batch out, because its reward
        failed there: it takes over from the one that has seen most.
        """
        self.load_state_dict(max((share["before"] for share in shares), key=_seen))
        if training:
            self.is_frozen = self.is_frozen or self.held_out.count > 0
        elif self.is_frozen:
            return
        statistics = self.training if training else self.held_out
        for share in shares:
            statistics.merge(RunningStatistics(**share["batch"]))

    def scaled(self, values: Sequence[float | None], *, training: bool) -> list[float | None]:
        """The values on this scale; None stays None."""
        statistics = self.training if training else self.held_out
        scale = min_max if self.kind == "min-max" else z_score
        return [None if value is None else scale(value, statistics) for value in values]

    def state_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "training": self.training.state_dict(),
            "held_out": self.held_out.state_dict(),
            "is_frozen": self.is_frozen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what was saved.

        The statistics serve both kinds, so a run may be resumed with the other scaling."""
        self.training.load_state_dict(state["training"])
        self.held_out.load_state_dict(state["held_out"])
        self.is_frozen = state["is_frozen"]


def _seen(state: dict[str, Any]) -> tuple[int, bool]:
    return state["training"]["count"] + state["held_out"]["count"], state["is_frozen"]


def _numbers(*values: float | None) -> list[float]:
    return [value for value in values if value is not None]
