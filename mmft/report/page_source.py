"""A run's folder as the report reads it: whatever files are there, also those of a run that crashed.

Nothing is loaded that computes (`mmft.runs` does that), and nothing is believed: a folder may be anyone's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmft.errors import ConfigError
from mmft.report.page_text import count, short
from mmft.report.run_kind import Kind, run_kind
from mmft.trainers.callbacks import METRICS_FILE, SAMPLES_FILE

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
EPISODES_FILE = "episodes.jsonl"
EXPLAIN_FILE = "explain/explain.json"
KINDS: dict[Kind, str] = {
    "policy": "a policy",
    "agent": "an agent",
    "reward_model": "a reward model",
    "sft": "a warm start",
}
Record = dict[str, Any]
MAX_DEPTH = 50
"""Of nested values: what is deeper is no record of ours, and would end in a `RecursionError`."""
MAX_VALUES = 5_000_000
"""Of a record: YAML has anchors, by which a few lines become any number of values."""


@dataclass(frozen=True, slots=True)
class RunSource:
    """What the files of a run say.

    Attributes:
        folder: where they are.
        label: what the page calls the run.
        kind: what was trained.
        settings: config.yaml.
        summary: summary.json; empty where the run did not come to its end.
        history: metrics.jsonl.
        samples: samples.jsonl.
        episodes: episodes.jsonl.
        explained: explain/explain.json.
        problems: what could not be read, in words.
    """

    folder: Path
    label: str
    kind: Kind
    settings: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    episodes: list[Record] = field(default_factory=list)
    explained: Record = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What the run warned of, and what is wrong with its files."""
        return [*map(str, items(self.summary.get("warnings"))), *self.problems]


def read_runs(folders: Sequence[Path], names: Sequence[Path] | None = None) -> list[RunSource]:
    """Every run, under labels that tell them apart.

    Args:
        folders: of the runs.
        names: what the runs are called, where their folders do not say it.

    Raises:
        ConfigError: a folder is missing or holds no run, or the runs trained different kinds of things.
    """
    if not folders:
        raise ConfigError("no run is named; give the folder of at least one.")
    called = labels([folder.resolve() for folder in folders] if names is None else names)
    runs = [read_run(folder, label) for folder, label in zip(folders, called, strict=True)]
    first = runs[0]
    for run in runs:
        if run.kind != first.kind:
            raise ConfigError(
                f"{first.folder} trained {KINDS[first.kind]} and {run.folder} {KINDS[run.kind]}; a report "
                "compares runs of one kind. Make one for each."
            )
    return runs


def labels(paths_of_runs: Sequence[Path]) -> list[str]:
    """The last parts of paths, with as much of the path before them as it takes to tell them apart."""
    paths = [path.parts for path in paths_of_runs]
    names = []
    for number, parts in enumerate(paths):
        others = [other for place, other in enumerate(paths) if place != number and other != parts]
        depth = 1
        while depth < len(parts) and any(other[-depth:] == parts[-depth:] for other in others):
            depth += 1
        name, again = "/".join(parts[-depth:]), paths[:number].count(parts)
        names.append(short(f"{name} ({again + 1})" if again else name))
    return names


def read_run(folder: Path, label: str | None = None) -> RunSource:
    """The files of one run.

    Raises:
        ConfigError: there is no such folder, or it holds neither a summary nor log lines.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}. Give the `output_dir` of a run.")
    if not any((folder / name).is_file() for name in (SUMMARY_FILE, METRICS_FILE)):
        raise ConfigError(
            f"{folder} holds neither {SUMMARY_FILE} nor {METRICS_FILE}: no run has been there. Give the "
            "`output_dir` of a run."
        )
    problems: list[str] = []
    settings = _mapping(folder / CONFIG_FILE, problems)
    summary = _mapping(folder / SUMMARY_FILE, problems)
    if not (folder / SUMMARY_FILE).is_file():
        problems.insert(
            0, f"There is no {SUMMARY_FILE}: the run did not come to its end, and this is what it logged."
        )
    return RunSource(
        folder=folder,
        label=folder.resolve().name if label is None else label,
        kind=run_kind(folder, settings, summary),
        settings=settings,
        summary=summary,
        history=_lines(folder / METRICS_FILE, problems),
        samples=_lines(folder / SAMPLES_FILE, problems),
        episodes=_lines(folder / EPISODES_FILE, problems),
        explained=_mapping(folder / EXPLAIN_FILE, problems),
        problems=problems,
    )


def picture_within(folder: Path, name: str, start: bytes) -> bytes | None:
    """A file of a run's folder that begins as pictures of its kind do; None where there is none.

    A name that leads out of the folder is none: someone else's run must show no picture of this machine.
    """
    path = Path(name)
    if path.is_absolute() or path.drive or ".." in path.parts or "\0" in name:
        return None
    try:
        data = (folder / path).read_bytes()
    except (OSError, ValueError):  # a name with half a surrogate pair is none that files have
        return None
    return data if data.startswith(start) else None


def is_sane(value: Any) -> bool:
    """Whether a value that was read is neither too deep nor too large to look at."""
    num_seen, level = 0, [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            below += each.values() if isinstance(each, Mapping) else each if isinstance(each, list) else ()
            if num_seen + len(below) > MAX_VALUES:
                return False
        if not below:
            return True
        num_seen, level = num_seen + len(below), below
    return False


def mapping(value: Any) -> dict[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return list(value) if isinstance(value, (list, tuple)) else []


def _mapping(path: Path, problems: list[str]) -> Record:
    """A YAML or JSON file that holds a mapping; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, RecursionError, OSError, yaml.YAMLError):
        found = None
    if isinstance(found, Mapping) and is_sane(found):
        return {str(name): value for name, value in found.items()}
    problems.append(f"{path.name} cannot be read and is left out.")
    return {}


def _lines(path: Path, problems: list[str]) -> list[Record]:
    """The records of a .jsonl file that can be read; a run that was killed leaves half a line."""
    if not path.is_file():
        return []
    records, num_unreadable = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and is_sane(record):
            records.append(record)
        else:
            num_unreadable += 1
    if num_unreadable:
        verb = "is" if num_unreadable == 1 else "are"
        problems.append(f"{count(num_unreadable, 'line')} of {path.name} cannot be read and {verb} left out.")
    return records
