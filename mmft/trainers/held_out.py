"""What `evaluate` keeps of held-out completions, and the means it reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmft.engine.token_texts import token_texts

if TYPE_CHECKING:
    from mmft.trainers.collector import Judged

TOKEN_FIELDS = ("token_texts", "logps", "values", "advantages")
"""What a sample tells of each of its tokens; the critic's part only where there is one."""
DIGITS = 4
"""Of the numbers of tokens: they are looked at, nothing is computed from them."""


def held_out_batches(num_rows: int, size: int, process: int, count: int) -> Iterator[tuple[list[int], int]]:
    """Row numbers of the batches of one of `count` processes, and how many of each are not repeats.

    With sharded weights every process must run as many batches as the others, so the last ones wrap around.
    """
    for start in range(process * size, -(-num_rows // (size * count)) * size * count, size * count):
        yield [row % num_rows for row in range(start, start + size)], max(min(num_rows - start, size), 0)


def held_out_samples(
    indices: list[int], judged: Judged, tokens: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """One record per row: what was said, how it ended, what every reward gave, and what `tokens` tells."""
    totals, components = judged.judgement.total.tolist(), judged.judgement.components
    lengths = judged.samples.completions.lengths.tolist()
    sums = judged.samples.logps.sum(dim=1).tolist()  # 0 beyond the end
    return [
        {
            "row": index,
            "completion": judged.texts[i][0],
            "tokens": int(lengths[i]),
            "mean_logp": sums[i] / max(lengths[i], 1),
            "ended": bool(judged.samples.ended[i]),
            "reward": totals[i],
            "rewards": {name: values[i] for name, values in components.items()},
        }
        | dict(tokens[i] if tokens else {})
        for i, index in enumerate(indices)
    ]


def token_records(processor: Any, judged: Judged, advantages: Tensor | None) -> list[dict[str, Any]]:
    """Per completion the texts of its tokens and a number per token of each kind, by `TOKEN_FIELDS`.

    Args:
        processor: of the model.
        judged: one completion of each row.
        advantages: (N, R) where there is a critic; those of a completion that no reward judged become None.
    """
    samples, unjudged = judged.samples, (~judged.judgement.valid).tolist()
    numbers = {"logps": samples.logps, "values": samples.values, "advantages": advantages}
    rows = {name: tensor.tolist() for name, tensor in numbers.items() if tensor is not None}
    records: list[dict[str, Any]] = []
    lengths = samples.completions.lengths.tolist()
    for i, (ids, length) in enumerate(zip(samples.completions.ids.tolist(), lengths, strict=True)):
        record: dict[str, Any] = {"token_texts": token_texts(processor, ids[:length])}
        for name, values in rows.items():
            record[name] = [round(value, DIGITS) for value in values[i][:length]]
        if advantages is not None and unjudged[i]:
            record["advantages"] = None
        records.append(record)
    return records


def masked_counts(judged: Judged, fresh: int) -> dict[str, int]:
    """Of the first `fresh` rows, those each reward failed on; the others are repeats, counted elsewhere."""
    counts = judged.judgement.failed[:fresh].sum(dim=0).tolist()
    return {
        f"rewards/{name}/masked": int(count)
        for name, count in zip(judged.judgement.names, counts, strict=True)
        if count
    }


def held_out_columns(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """One number per sample for every measure, names as in training; None or NaN where it was not judged."""
    columns: dict[str, list[float | None]] = {"reward": [sample["reward"] for sample in samples]}
    # A part that a reward logs now and then is missing from some samples.
    for name in dict.fromkeys(name for sample in samples for name in sample["rewards"]):
        columns[f"rewards/{name}"] = [sample["rewards"].get(name) for sample in samples]
    columns["completions/mean_length"] = [float(sample["tokens"]) for sample in samples]
    columns["completions/no_eos_share"] = [float(not sample["ended"]) for sample in samples]
    return columns


def held_out_means(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the samples that could be judged; names as in training."""
    means = {}
    for name, values in held_out_columns(samples).items():
        known = [value for value in values if value is not None and value == value]
        if known:
            means[name] = sum(known) / len(known)
    return means
