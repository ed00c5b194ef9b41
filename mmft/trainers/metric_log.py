"""Means (and counts) of everything measured between two log lines, over all processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

from accelerate.utils import gather_object
from torch import Tensor


class MetricLog:
    """Collects weighted values by name; `flush` returns means and counts over processes, and starts anew."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._counts: dict[str, float] = {}

    def count(self, name: str, number: float) -> None:
        """Adds to a number that is summed instead of averaged."""
        self._counts[name] = self._counts.get(name, 0.0) + number

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        """Adds a value that stands for `weight` tokens, samples or calls; NaN values are left out."""
        if weight <= 0 or math.isnan(value):
            return
        total, count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (total + float(value) * weight, count + weight)

    def add_all(self, name: str, values: list[float]) -> None:
        """Adds one value per sample."""
        for value in values:
            self.add(name, value)

    def add_parts(self, parts: Mapping[str, Tensor], num_tokens: Tensor, tokens: int) -> None:
        """Adds sums over a micro-batch, divided by `num_tokens` of the step, as means over its own tokens."""
        for name, part in parts.items():
            self.add(name, float(part.detach() * num_tokens) / max(tokens, 1), tokens)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds the block took."""
        start = perf_counter()
        yield
        self.add(f"seconds/{name}", perf_counter() - start)

    def flush(self) -> dict[str, float]:
        """Global means, then counts, by name, in order of first use; collective."""
        both = gather_object([(self._sums, self._counts)])
        gathered: list[dict[str, tuple[float, float]]] = [sums for sums, _ in both]
        self._sums, self._counts = {}, {}
        names = dict.fromkeys(name for sums in gathered for name in sums)
        means = {}
        for name in names:
            parts = [sums[name] for sums in gathered if name in sums]
            means[name] = sum(total for total, _ in parts) / sum(count for _, count in parts)
        for _, counts in both:
            for name, number in counts.items():
                means[name] = means.get(name, 0.0) + number
        return means
