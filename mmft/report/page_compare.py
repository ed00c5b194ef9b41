"""Several runs beside each other: their measures with paired intervals, and the settings they differ in.

Rows are matched by their keys and by what was asked: two data sets may have the same keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmft.report.agent_record import AFTER
from mmft.report.page_measures import (
    REWARDS,
    direction,
    means,
    measure_label,
    repeated_rewards,
    row_values,
)
from mmft.report.page_source import RunSource
from mmft.report.page_tables import (
    DASH,
    Table,
    bounds,
    change_of,
    decimal,
    resampling,
    row,
    signed,
    table,
    tone,
)
from mmft.report.page_text import count, short, tidy

PLACES = ("output_dir", "logging_dir", "run_name")
"""Settings that say where a run is, and not what it is."""
MAX_PAIRED = 24
"""Measures that get an interval: parts of rewards may be many, and each is drawn anew."""
MAX_SETTING = 160
"""Characters of a setting in a table."""


def comparison_tables(runs: Sequence[RunSource], notes: list[str]) -> list[Table]:
    """Measures by run, and settings by run; what makes them hard to compare goes to `notes`."""
    tables = [measure_table(runs, notes), setting_table(runs, notes)]
    versions = {json.dumps(run.summary.get("versions"), sort_keys=True, default=str) for run in runs}
    if len(versions) > 1:
        notes.append("The runs were made with different versions of libraries; see the settings.")
    return [each for each in tables if each is not None]


def measure_table(runs: Sequence[RunSource], notes: list[str]) -> Table | None:
    """What every run's trained model scored, and how much more than the first one's on the rows of both."""
    values = [means(run, AFTER) for run in runs]
    again = {REWARDS + name for name in repeated_rewards(*runs)}
    names = [*dict.fromkeys(name for each in values for name in each if name not in again)]
    if not names:
        return None
    first, *others = runs
    paired = [_paired(first, other, names, notes) for other in others]
    rows = []
    for name in names:
        changes = [each.get(name, {}) for each in paired]
        cells = [
            measure_label(name),
            *(decimal(each.get(name)) for each in values),
            *map(_difference, changes),
        ]
        low, high = (changes[0].get(side) for side in ("low", "high"))
        judged = tone(direction(first, name), low, high) if len(runs) == 2 else None
        rows.append(row(cells, judged, short(name)))
    columns = [
        "measure",
        *(run.label for run in runs),
        *(f"{run.label} over {first.label}" for run in others),
    ]
    level = resampling(first).confidence_level
    caption = (
        f"After training. Differences are those on the rows that both runs answered, with their {level:.0%} "
        "intervals over rows, and the shares of rows where the number is higher and lower."
    )
    return table("runs", "Runs", caption, columns, rows)


def _difference(change: Mapping[str, Any]) -> str:
    if not change:
        return DASH
    told = f"{signed(change['value'])} {bounds(change['low'], change['high'])}"
    return f"{told}, higher in {change['wins']:.0%}, lower in {change['losses']:.0%}"


def _paired(
    first: RunSource, other: RunSource, names: Sequence[str], notes: list[str]
) -> dict[str, dict[str, Any]]:
    one, two = row_values(first), row_values(other)
    shared = [key for key in one if key in two]
    what = "episode" if first.kind == "agent" else "row"
    if one and two and (len(shared) < len(one) or len(shared) < len(two)):
        notes.append(
            f"{first.label} and {other.label} have {count(len(shared), what)} in common, of {len(one):,} and "
            f"{len(two):,}; the others are not compared."
        )
    if len(names) > MAX_PAIRED:
        text = f"Of {len(names):,} measures the first {MAX_PAIRED} have an interval of their difference."
        notes += [] if text in notes else [text]
    rows = [(one[key], two[key]) for key in shared]
    return {name: change_of(name, rows, resampling(first)) for name in names[:MAX_PAIRED]}


def setting_table(runs: Sequence[RunSource], notes: list[str]) -> Table | None:
    """The settings that not all runs have in common."""
    names = [*dict.fromkeys(name for run in runs for name in run.settings if name not in PLACES)]
    rows = []
    for name in names:
        told = [_setting(run, name) for run in runs]
        if len(set(told)) > 1:
            rows.append(row([short(name), *told]))
    if not rows:
        notes.append("The runs have the same settings, but for where they are.")
        return None
    caption = "Only settings that differ; a dash is a setting that the run does not have."
    return table("settings", "Different settings", caption, ["setting", *(run.label for run in runs)], rows)


def _setting(run: RunSource, name: str) -> str:
    if name not in run.settings:
        return DASH
    value = tidy(run.settings[name])
    return short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), MAX_SETTING)
