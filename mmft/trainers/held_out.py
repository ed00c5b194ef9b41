"""What `evaluate` keeps of held-out completions, and the means it reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmft.trainers.collector import Judged


def held_out_batches(num_rows: int, size: int, process: int, count: int) -> Iterator[tuple[list[int], int]]:
    """Row numbers of the batches of one of `count` processes, and how many of each are not repeats.

    With sharded weights every process must run as many batches as the others, so the last ones wrap around.
    """
    for start in range(process * size, -(-num_rows // (size * count)) * size * count, size * count):
        yield [row % num_rows for row in range(start, start + size)], max(min(num_rows - start, size), 0)


def held_out_samples(indices: list[int], judged: Judged) -> list[dict[str, Any]]:
    """One record per row: what was said, how it ended, and what every reward gave."""
    totals, components = judged.judgement.total.tolist(), judged.judgement.components
    return [
        {
            "row": index,
            "completion": judged.texts[i][0],
            "tokens": int(judged.samples.completions.lengths[i]),
            "ended": bool(judged.samples.ended[i]),
            "reward": totals[i],
            "rewards": {name: values[i] for name, values in components.items()},
        }
        for i, index in enumerate(indices)
    ]


def held_out_means(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the samples that could be judged; names as in training."""
    columns: dict[str, list[float]] = {"reward": [sample["reward"] for sample in samples]}
    for sample in samples:
        for name, value in sample["rewards"].items():
            columns.setdefault(f"rewards/{name}", []).append(value)
    columns["completions/mean_length"] = [float(sample["tokens"]) for sample in samples]
    columns["completions/no_eos_share"] = [float(not sample["ended"]) for sample in samples]
    means = {}
    for name, values in columns.items():
        known = [value for value in values if value is not None and value == value]
        if known:
            means[name] = sum(known) / len(known)
    return means
