"""The report of a run, or of several beside each other: from the files of their folders to one HTML page.

Here the parts come together: `page_source` reads; `page_charts`, `page_tables`, `page_compare`,
`page_samples` and `page_facts` tell; `page_budget` cuts to size; `page` renders.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmft.report.page import VERSION, render_page
from mmft.report.page_budget import within_budget
from mmft.report.page_charts import charts
from mmft.report.page_compare import comparison_tables
from mmft.report.page_facts import run_record, subtitle
from mmft.report.page_measures import REWARD, changed_measures, measures
from mmft.report.page_samples import group_columns, samples
from mmft.report.page_source import RunSource, items, mapping, picture_within, read_runs
from mmft.report.page_tables import run_tables
from mmft.report.page_text import short

REPORT_FILE = "report.html"
MAX_FIGURES = 40
MAX_FIGURE_BYTES = 2_000_000
"""Of a figure; one that is larger is named in the notes."""
FIGURE_ROOM = 3_000_000
"""Bytes of all figures."""
PNG_START = b"\x89PNG\r\n\x1a\n"
EPISODES = (
    "episode.png",
    "Episodes",
    "What the agent saw and was told at each step, and what it made of each action.",
)


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    names: Sequence[str | os.PathLike[str]] | None = None,
) -> Path:
    """Writes the page of one run, or of several that are compared; returns where it is.

    Args:
        folders: of the runs.
        target: the page.
        names: what the runs are called, where their folders do not say it.

    Raises:
        ConfigError: a folder holds no run, or the runs are of different kinds.
    """
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(build_report(folders, names)), encoding="utf-8")
    return path


def build_report(
    folders: Sequence[str | os.PathLike[str]], names: Sequence[str | os.PathLike[str]] | None = None
) -> dict[str, Any]:
    """The content of the page, from the files of the folders alone; what is missing there is left out.

    Args:
        folders: of the runs.
        names: what the runs are called, where their folders do not say it.

    Raises:
        ConfigError: a folder holds no run, or the runs are of different kinds.
    """
    runs = read_runs([Path(folder) for folder in folders], None if names is None else [*map(Path, names)])
    alone, notes = len(runs) == 1, _notes(runs)
    answers, found = samples(runs, notes)
    shown = within_budget(found, [run.folder for run in runs], notes)
    return {
        "version": VERSION,
        "title": runs[0].label if alone else short(" / ".join(run.label for run in runs)),
        "subtitle": subtitle(runs[0]) if alone else f"{len(runs)} runs compared",
        "kind": runs[0].kind,
        "runs": [run_record(run) for run in runs],
        "tables": run_tables(runs[0]) if alone else comparison_tables(runs, notes),
        "charts": charts(runs, notes),
        "measures": measures(runs[0], changed_measures(runs[0]) or [REWARD]),
        "columns": group_columns(shown),
        "answers": answers,
        "samples": shown,
        "num_samples_total": num_rows(runs, len(found)),
        "figures": [figure for run in runs for figure in figures(run, notes, alone=alone)],
        "notes": notes,
    }


def num_rows(runs: Sequence[RunSource], found: int) -> int:
    """How many rows were answered, of which the samples may be a part."""
    told = runs[0].summary.get("held_out_rows")
    return max(told, found) if len(runs) == 1 and isinstance(told, int) else found


def _notes(runs: Sequence[RunSource]) -> list[str]:
    if any("advantages" in mapping(sample.get("after")) for run in runs for sample in run.samples[:1]):
        return [
            "Advantages of held-out tokens come from the run's own estimator and critic, with the total "
            "reward at the last token and without the price of KL; they are in units of the reward, and not "
            "whitened."
        ]
    return []


def figures(run: RunSource, notes: list[str], *, alone: bool) -> list[dict[str, Any]]:
    """Pictures of the folder that show what the page does not draw itself."""
    named = [EPISODES] if run.kind == "agent" else []
    for told in map(mapping, items(run.explained.get("figures"))[:MAX_FIGURES]):
        named.append(
            (str(told.get("file")), short(told.get("title", "")), short(told.get("caption", ""), 600))
        )
    found, room = [], FIGURE_ROOM
    for name, title, caption in named:
        data = picture_within(run.folder, name, PNG_START)
        if data is None:
            continue
        if len(data) > min(MAX_FIGURE_BYTES, room):
            notes.append(f"There is no room for {short(name)}, which lies in {run.label}.")
            continue
        room -= len(data)
        source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
        found.append(
            {"title": title if alone else f"{run.label}: {title}", "caption": caption, "src": source}
        )
    return found
