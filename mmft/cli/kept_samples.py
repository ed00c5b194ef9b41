"""What a run folder keeps of its held-out rows: records of samples.jsonl, and small pictures beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmft.data.rows import PromptDataset
from mmft.report.page_budget import MAX_SAMPLES
from mmft.report.record import Outcome, paired_samples, spread, write_json_lines
from mmft.report.thumbnails import MAX_PICTURES, write_thumbnails
from mmft.trainers.callbacks import SAMPLES_FILE
from mmft.types import PromptRow

TOLD = ("references", "keywords")
"""Columns that say what an answer is held against."""
MAX_COLUMN_TEXT = 80
"""Characters of a text that may name a group of rows."""


def kept_places(num_rows: int) -> list[int]:
    """The rows that are kept: all, or as many as a report has room for, spread evenly."""
    return spread(MAX_SAMPLES, num_rows)


def keep_samples(folder: Path, rows: PromptDataset, outcome: Outcome) -> list[dict[str, Any]]:
    """Writes samples.jsonl with pictures beside it; returns the records, of the rows at `kept_places`.

    Args:
        folder: of the run.
        rows: that were held out.
        outcome: with the answers before and after.
    """
    before, after = outcome.before, outcome.after
    if before is None or after is None:
        return []
    places = kept_places(len(rows))
    records = []
    for place in places:
        row = rows[place]
        records.append(row_record(row) | kept_of_row(folder, place, row))
    kept = dataclasses.replace(after, samples=[after.samples[place] for place in places])
    samples = paired_samples(records, before, kept)
    write_json_lines(folder / SAMPLES_FILE, samples)
    return samples


def row_record(row: PromptRow) -> dict[str, Any]:
    """What was asked, and what the answer is held against."""
    told = {name: row.columns[name] for name in TOLD if row.columns.get(name) is not None}
    return {"key": row.key, "prompt": row.prompt} | told


def kept_of_row(folder: Path, place: int, row: PromptRow, without: Sequence[str] = TOLD) -> dict[str, Any]:
    """What a report shows of a row beside its texts: pictures, made small, and columns to choose by.

    Args:
        folder: of the run.
        place: of the row among those held out.
        row: the row.
        without: columns that the record has already.
    """
    record: dict[str, Any] = {}
    if row.images:
        record["pictures"] = write_thumbnails(folder, place, row.images)
    if len(row.images) > MAX_PICTURES:
        record["pictures_left_out"] = len(row.images) - MAX_PICTURES
    columns = small_columns(row.columns, without)
    return record | ({"columns": columns} if columns else {})


def small_columns(columns: Mapping[str, Any], without: Sequence[str]) -> dict[str, Any]:
    """Columns that hold a short text, a number or a boolean."""
    return {name: value for name, value in columns.items() if name not in without and _is_small(value)}


def _is_small(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_COLUMN_TEXT
    return isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
