"""The other side of `compare_with`: the base model, another run, or an evaluation.json written before."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmft.cli.loading import model_and_adapter
from mmft.config import RunConfig
from mmft.errors import ConfigError, DataError
from mmft.evaluation.compare import match_rows
from mmft.models.packaged import model_path
from mmft.report.record import Evaluation
from mmft.trainers.held_out import held_out_means

BASE = "base"
SAMPLE_FIELDS = ("key", "completion", "tokens", "ended", "reward", "rewards")
TOLD = ("prompt", "references")


@dataclass(frozen=True, slots=True)
class OtherRun:
    """What to compare with."""

    label: str
    """Its name in tables."""
    config: RunConfig
    """The settings under which it answers."""
    file: Path | None = None
    """Where its answers are, if it has answered already."""

    @property
    def title(self) -> str:
        """Its name in full."""
        return str(self.file) if self.file is not None else run_title(self.config)


def run_title(config: RunConfig) -> str:
    """The model of a run, and its adapter."""
    model, adapter = model_and_adapter(config)
    return f"{model} with adapter {adapter}" if adapter else model


def find_other(config: RunConfig) -> OtherRun | None:
    """What `compare_with` names, or None.

    Raises:
        ConfigError: it names nothing that answers, or the very model that is evaluated.
    """
    name = config.script.compare_with
    if name is None:
        return None
    model, adapter = model_and_adapter(config)
    if name == BASE:
        if adapter is None:
            raise ConfigError(
                f"`compare_with: base` leaves the adapter out, and {model} is evaluated without one. Set "
                "`adapter_path`, or compare with the folder of another run or with an evaluation.json."
            )
        return OtherRun(BASE, _with_model(config, model, None))
    path = Path(name)
    if path.is_file():
        return OtherRun(path.stem if path.stem != "evaluation" else path.resolve().parent.name, config, path)
    if not any((path / each).is_file() for each in ("adapter_config.json", "config.json")):
        raise ConfigError(f"`compare_with` {name!r} {_what_is_wrong(path)}")
    other = _with_model(config, str(path), None)
    other_model, other_adapter = model_and_adapter(other)
    # Packaged models may go by their name or by their folder.
    if (model_path(other_model), other_adapter) == (model_path(model), adapter):
        raise ConfigError(f"`compare_with` {name!r} is what is evaluated; name another run, or `base`.")
    return OtherRun(path.resolve().name, other)


def _with_model(config: RunConfig, model: str, adapter: str | None) -> RunConfig:
    script = dataclasses.replace(config.script, adapter_path=adapter)
    return dataclasses.replace(
        config, script=script, model=dataclasses.replace(config.model, model_name_or_path=model)
    )


def _what_is_wrong(path: Path) -> str:
    if path.is_dir():
        return (
            "holds neither an adapter_config.json nor a config.json; give the folder of an adapter or model, "
            "or the evaluation.json in it."
        )
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*siblings, BASE], n=1)
    found = "" if not near else BASE if near[0] == BASE else str(path.parent / near[0])
    hint = f"Did you mean {found!r}?" if near else "Give `base`, a folder, or an evaluation.json."
    return f"is no file or folder. {hint}"


def read_answers(path: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[Evaluation, dict[str, Any]]:
    """The answers in an evaluation.json, in the order of `rows` (records with `key`), and the whole record.

    Raises:
        ConfigError: the file is none.
        DataError: it is about other rows.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"`compare_with` {path} is no JSON: {error}") from error
    samples = record.get("samples") if isinstance(record, dict) else None
    if not isinstance(samples, list) or not samples or not all(map(_is_answer, samples)):
        raise ConfigError(
            f"`compare_with` {path} is no evaluation.json of `mmft evaluate`: it lacks `samples` with "
            f"{', '.join(SAMPLE_FIELDS)}."
        )
    keys = [tuple(row["key"]) for row in rows]
    places = match_rows(keys, [tuple(sample["key"]) for sample in samples], ("this evaluation", str(path)))
    ordered = [samples[place] | {"row": index} for index, place in enumerate(places)]
    for row, sample in zip(rows, ordered, strict=True):
        if any(row.get(name) != sample.get(name) for name in TOLD):
            raise DataError(
                f"row {tuple(row['key'])} has another prompt or other references in {path}; compare runs on "
                "the same dataset."
            )
    return Evaluation(held_out_means(ordered), ordered), record


def _is_answer(sample: Any) -> bool:
    """Whether that is one of the samples of `evaluate`, rather than a record of another kind."""
    return (
        isinstance(sample, dict)
        and all(name in sample for name in SAMPLE_FIELDS)
        and isinstance(sample["key"], list)
        and isinstance(sample["completion"], str)
        and isinstance(sample["rewards"], dict)
    )


def differing_settings(mine: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """One sentence for each setting by which the two sets of answers, or their judges, differ."""
    theirs = record.get("settings", {})
    return [
        f"`{name}` is {mine[name]!r} here and {theirs[name]!r} there."
        for name in ("seed", "eval_temperature", "max_completion_length", "reward_funcs", "reward_weights")
        if name in theirs and theirs[name] != mine[name]
    ]
