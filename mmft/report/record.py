"""A run's numbers and samples as plain records; nothing here trains, draws or prints."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARIES = ("mmft", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
LABELS = {
    "reward": "total reward",
    "completions/mean_length": "tokens per completion",
    "completions/no_eos_share": "share without end",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out rows as one policy answered them.

    Attributes:
        means: per measure the mean over the rows that could be judged.
        samples: per row the completion and its rewards.
    """

    means: dict[str, float]
    samples: list[dict[str, Any]]

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> Evaluation:
        """From what a trainer's `evaluate` returned and left behind."""
        means = {
            name.removeprefix("eval_"): float(value)
            for name, value in metrics.items()
            if name.startswith("eval_")
        }
        return cls(means, [dict(sample) for sample in samples])


@dataclass(frozen=True, slots=True)
class Change:
    """One measure before and after training."""

    name: str
    before: float
    after: float

    @property
    def label(self) -> str:
        return LABELS.get(self.name, self.name.removeprefix("rewards/"))

    @property
    def relative(self) -> float | None:
        """(after - before) / |before|; None from zero."""
        return (self.after - self.before) / abs(self.before) if self.before else None


def compare(before: Evaluation, after: Evaluation) -> list[Change]:
    """The measures both evaluations have, the total first; a reward that is the total is not said twice."""
    changes = [
        Change(name, value, after.means[name]) for name, value in before.means.items() if name in after.means
    ]
    return [change for change in changes if change is changes[0] or not _same(change, changes[0])]


def _same(one: Change, other: Change) -> bool:
    # Totals are summed in single precision.
    return math.isclose(one.before, other.before, abs_tol=1e-5) and math.isclose(
        one.after, other.after, abs_tol=1e-5
    )


def paired_samples(
    rows: Sequence[Mapping[str, Any]], before: Evaluation, after: Evaluation
) -> list[dict[str, Any]]:
    """Per held-out row its key, prompt and references with both completions and their rewards."""
    told = {sample["row"]: sample for sample in before.samples}
    return [
        dict(row) | {"before": _answer(told[sample["row"]]), "after": _answer(sample)}
        for row, sample in zip(rows, after.samples, strict=True)
    ]


def _answer(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name != "row"}


def spread(count: int, total: int) -> list[int]:
    """`count` indices spread evenly over `total`, all of them where there are no more."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide what a run does."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = "unknown"
    return found


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; none where there is no file."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    )


def write_json_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One record per line, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(plain(record), ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """One indented record, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(record), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """The value as JSON knows it: NaN and infinity become null; what is no data becomes its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
