"""What `mmft evaluate` reads besides pictures and prompts, checked before a model is loaded."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from mmft.data.rows import PromptDataset
from mmft.errors import ConfigError
from mmft.evaluation.metrics import METRICS, CorpusResult, corpus_metrics
from mmft.evaluation.settings import EvaluationSettings

MAX_GROUPS = 100
NO_GROUP = "(none)"


@dataclass(frozen=True, slots=True)
class Metrics:
    """Corpus metrics as a config names them."""

    options: dict[str, dict[str, Any]]
    """Arguments by short name."""
    columns: dict[str, list[Any] | None]
    """What they read of the rows."""

    def of(self, completions: Sequence[str]) -> CorpusResult | None:
        """Scores of one completion per row; None where no metric is named.

        Raises:
            ConfigError: the metric cannot judge these rows.
        """
        if not self.options:
            return None
        try:
            return corpus_metrics(
                list(self.options),
                completions,
                self.columns.get("references"),
                self.columns.get("images"),
                options=self.options,
            )
        except (ValueError, OSError) as error:  # no row to judge; no such CLIP model
            raise ConfigError(f"`metrics`: {error}") from error


def load_metrics(specs: Sequence[Any], rows: PromptDataset) -> Metrics:
    """The metrics of a config, and the columns that they need.

    Raises:
        ConfigError: an unknown metric or argument, or rows without what it needs.
    """
    options = dict(_metric(spec) for spec in specs)
    columns: dict[str, list[Any] | None] = {}
    for name in options:
        for column in METRICS[name].takes:
            if column not in columns:
                columns[column] = _pictures(rows) if column == "images" else rows.column(column)
        if not any(value is not None for value in columns[METRICS[name].needs] or []):
            raise ConfigError(
                f"`metrics` names {name!r}, which needs `{METRICS[name].needs}`; the split {rows.name!r} has "
                f"none. It has {', '.join(column_names(rows))}; `rename_columns` gives a column another name."
            )
    _try_on_nothing(options, columns)
    return Metrics(options, columns)


def _try_on_nothing(options: Mapping[str, dict[str, Any]], columns: Mapping[str, list[Any] | None]) -> None:
    """Metrics of text judge an empty answer to one row: what is wrong with an argument shows at once.

    Raises:
        ConfigError: an argument has a value that the metric cannot use.
    """
    texts = next((each for each in columns.get("references") or [] if each is not None), None)
    for name, arguments in options.items():
        if METRICS[name].needs == "references":
            try:
                corpus_metrics([name], [""], [texts], options={name: arguments})
            except (ValueError, OSError) as error:
                raise ConfigError(f"`metrics`: {name}: {error}") from error


def _metric(spec: Any) -> tuple[str, dict[str, Any]]:
    arguments = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    name = arguments.pop("name", None)
    if name not in METRICS:
        raise ConfigError(f"`metrics` names {name!r}, which is none. {_near(str(name), list(METRICS))}")
    parameters = inspect.signature(METRICS[name].compute).parameters.values()
    takes = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters)
    for argument in arguments:
        if argument not in takes and not open_ended:
            raise ConfigError(f"metric {name!r} has no argument {argument!r}. {_near(argument, takes)}")
    return name, arguments


def _pictures(rows: PromptDataset) -> list[Any]:
    return [rows[index].images or None for index in range(len(rows))]


def column_names(rows: PromptDataset) -> list[str]:
    """Columns beside pictures and prompt."""
    return sorted(rows[0].columns)


def group_columns(settings: EvaluationSettings, rows: PromptDataset) -> dict[str, list[Hashable]]:
    """Per column of `by` the group of every row.

    Raises:
        ConfigError: no such column, or its values are no groups.
    """
    return {name: _groups(name, _column("by", name, rows), rows) for name in settings.by}


def number_columns(settings: EvaluationSettings, rows: PromptDataset) -> dict[str, list[float | None]]:
    """Per column of `correlate_with` the number of every row.

    Raises:
        ConfigError: no such column, or it holds something else than numbers.
    """
    return {
        name: _numbers(name, _column("correlate_with", name, rows), rows) for name in settings.correlate_with
    }


def _column(field: str, name: str, rows: PromptDataset) -> list[Any]:
    names = column_names(rows)
    if name not in names:
        raise ConfigError(
            f"`{field}` names {name!r}, which the split {rows.name!r} does not have. {_near(name, names)}"
        )
    return rows.column(name) or []


def _groups(name: str, values: list[Any], rows: PromptDataset) -> list[Hashable]:
    for index, value in enumerate(values):
        if not isinstance(value, (str, Real, type(None))):
            raise ConfigError(
                f"`by: {name}`: row {index} of {rows.name!r} holds {value!r:.60}; give a column of words or "
                "numbers, one per row."
            )
    # NaN, as tables write a missing number, equals nothing, itself included.
    groups = [NO_GROUP if value is None or value != value else value for value in values]
    if len(set(groups)) > MAX_GROUPS:
        raise ConfigError(
            f"`by: {name}`: the column has {len(set(groups))} different values for {len(groups)} rows; give "
            f"one with at most {MAX_GROUPS}."
        )
    return groups


def _numbers(name: str, values: list[Any], rows: PromptDataset) -> list[float | None]:
    for index, value in enumerate(values):
        if not isinstance(value, (Real, type(None))):
            raise ConfigError(
                f"`correlate_with: {name}`: row {index} of {rows.name!r} holds {value!r:.60}, which is no "
                "number; give a column of numbers, such as ratings."
            )
    if not any(value is not None and math.isfinite(value) for value in values):
        raise ConfigError(f"`correlate_with: {name}`: no row of {rows.name!r} has a number.")
    return [None if value is None else float(value) for value in values]


def _near(wrong: str, offered: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, offered, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(offered) or 'none'}."
