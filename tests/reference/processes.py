"""Two processes without the processes: threads that meet in every reduction."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor


def on_two_processes(work: Callable[[int, Callable[[Tensor], Tensor]], Tensor]) -> list[Tensor]:
    """Runs `work(rank, reduce)` in two threads whose `reduce` sums what both bring, as an all-reduce does."""
    barrier = threading.Barrier(2, timeout=10)
    brought: dict[int, Tensor] = {}
    results: dict[int, Tensor] = {}

    def run(rank: int) -> None:
        def reduce(tensor: Tensor) -> Tensor:
            brought[rank] = tensor
            barrier.wait()
            total = brought[0] + brought[1]
            barrier.wait()
            return total

        results[rank] = work(rank, reduce)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[0], results[1]]
