"""A run's numbers and samples as plain records; nothing here trains, draws or prints."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmft.trainers.held_out import held_out_columns

if TYPE_CHECKING:
    from mmft.evaluation.metrics import CorpusResult
    from mmft.trainers.modality_use import ModalityUse

LIBRARIES = ("mmft", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
LABELS = {
    "reward": "total reward",
    "completions/mean_length": "tokens per completion",
    "completions/no_eos_share": "share without end",
}
METRIC = "metrics/"
"""Begins the name of a corpus metric among the measures; those of rewards begin with "rewards/"."""
MASKED = "/masked"
"""Ends the name under which a trainer counts the samples that a reward failed on."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out rows as one policy answered them.

    Attributes:
        means: per measure the mean over the rows that could be judged, or the score of the corpus.
        samples: per row the completion and its rewards.
        masked: per reward the number of samples it failed on.
        corpus: what corpus metrics say, if any were asked for.
        modality_use: how much the answers hang on their pictures, if that was measured.
    """

    means: dict[str, float]
    samples: list[dict[str, Any]]
    masked: dict[str, int] = field(default_factory=dict)
    corpus: CorpusResult | None = None
    modality_use: ModalityUse | None = None

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> Evaluation:
        """From what a trainer's `evaluate` returned and left behind."""
        means = {
            name.removeprefix("eval_"): float(value)
            for name, value in metrics.items()
            if name.startswith("eval_")
        }
        masked = masked_samples([{name: means.pop(name) for name in [*means] if name.endswith(MASKED)}])
        return cls(means, [dict(sample) for sample in samples], masked)

    def with_corpus(self, corpus: CorpusResult | None) -> Evaluation:
        """The same answers with the scores of corpus metrics among the means."""
        if corpus is None:
            return self
        scores = {f"{METRIC}{name}": score for name, score in corpus.scores.items()}
        return dataclasses.replace(self, means=self.means | scores, corpus=corpus)

    def measures(self) -> dict[str, list[float | None]]:
        """One number per row for every measure, in the order of the samples; those that judged no row go."""
        columns = held_out_columns(self.samples)
        if self.corpus is not None:
            columns |= {f"{METRIC}{name}": values for name, values in self.corpus.per_sample.items()}
        return {name: values for name, values in columns.items() if any(map(is_number, values))}


@dataclass(frozen=True, slots=True)
class Change:
    """One measure before and after training."""

    name: str
    before: float
    after: float

    @property
    def label(self) -> str:
        return label(self.name)

    @property
    def relative(self) -> float | None:
        """(after - before) / |before|; None from zero."""
        return (self.after - self.before) / abs(self.before) if self.before else None


def label(name: str) -> str:
    """A measure's name as tables show it."""
    return LABELS.get(name, name.removeprefix("rewards/").removeprefix(METRIC))


def is_number(value: float | None) -> bool:
    """False for None and NaN, which stand for "could not be judged"."""
    return value is not None and not math.isnan(value)


def masked_samples(lines: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Per reward the samples it failed on, summed over log lines."""
    counts: dict[str, int] = {}
    for line in lines:
        for name, number in line.items():
            if name.startswith("rewards/") and name.endswith(MASKED):
                reward = name.removeprefix("rewards/").removesuffix(MASKED)
                counts[reward] = counts.get(reward, 0) + round(number)
    return counts


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training left behind; the evaluations are None where no rows were held out."""

    before: Evaluation | None
    after: Evaluation | None
    seconds: float

    @property
    def changes(self) -> list[Change]:
        return compare(self.before, self.after) if self.before and self.after else []


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


def versions(*others: str) -> dict[str, str]:
    """Of Python and of the libraries that decide what a run does, `others` among them."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *others):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = "unknown"
    return found


def hardware() -> dict[str, str | None]:
    """Names of processor and GPU and the size of the memory, of this machine."""
    return {"cpu": _processor(), "gpu": _gpu(), "memory": _memory()}


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # of Linux; others tell the architecture only
    told = information.read_text(encoding="utf-8", errors="replace") if information.is_file() else ""
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    cores = os.cpu_count() or 1
    return f"{names[0] if names else platform.machine()}, {cores} core{'s' if cores > 1 else ''}"


def _gpu() -> str | None:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(names) or None


def _memory() -> str | None:
    names = getattr(os, "sysconf_names", {})  # there is none on Windows
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        return None
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; none where there is no file."""
    if not path.is_file():
        return []
    # `splitlines` would also end a line at U+2028 and its like, which a text may hold.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_json_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One record per line, replacing the file."""
    lines = [json.dumps(plain(record), ensure_ascii=False) + "\n" for record in records]
    _write(path, "".join(lines))


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """One indented record, replacing the file."""
    _write(path, json.dumps(plain(record), indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Half a surrogate pair, which data may hold, is no UTF-8; with a backslash it is JSON's name for it.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def plain(value: Any) -> Any:
    """The value as JSON knows it: NaN and infinity become null; what is no data becomes its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
