"""One self-contained HTML page of a run, or of several: how a report is shown, not what it says.

Style, script, data and pictures are inlined, and the page's own policy forbids it to fetch anything. What it
says is built elsewhere and checked here. Tables, settings and figures are HTML; curves and samples are drawn
from the data by the script, which makes elements and never parses text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from mmft.errors import DataError
from mmft.report.record import is_number, plain

VERSION = 1
HTML = Path(__file__).parent / "html"
STYLES = ("style.css", "overview.css", "charts.css", "gallery.css", "tokens.css", "media.css")
# A file uses what those before it define.
SCRIPTS = (
    "dom.js", "state.js", "theme.js", "navigation.js", "scales.js", "readings.js", "chart.js", "charts.js",
    "measures.js", "selection.js", "tokens.js", "heat.js", "viewer.js", "card.js", "gallery_controls.js",
    "gallery.js", "settings.js", "overview.js", "main.js",
)  # fmt: skip
TEXTS = ("title", "subtitle", "kind")
LISTS = ("runs", "tables", "charts", "measures", "columns", "answers", "samples", "figures", "notes")
DRAWN = ("charts", "measures", "columns", "answers", "samples")
"""Read by the script; the template reads the rest."""
PICTURES = tuple(f"data:image/{kind};base64," for kind in ("jpeg", "png", "gif", "webp"))
"""How a picture begins; one that is a document, such as SVG, is none."""
TONES = ("good", "bad")
TOKEN_NUMBERS = ("logps", "values", "advantages")
UNPRINTABLE = re.compile("[\ud800-\udfff\x00]")
"""What text of models may hold and no file of UTF-8, or no HTML, can."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A named fact of every run."""

    name: str
    values_of_runs: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values_of_runs)) > 1


def render_page(data: Mapping[str, Any]) -> str:
    """The page as HTML that any browser shows from a file.

    Args:
        data: the page's content, version 1: texts, runs, tables, charts, samples and figures. Any of its
            lists may be missing or empty; NaN counts as missing.

    Raises:
        DataError: the data is not what the page can show.
    """
    page = checked_page(data)
    names = [str(run.get("name", "")) for run in page["runs"]]
    drawn = {name: page[name] for name in DRAWN} | {
        "runs": names,
        "num_samples_total": data.get("num_samples_total") or len(page["samples"]),
    }
    style, script = _joined(STYLES), "(() => {\n'use strict';\n\n" + _joined(SCRIPTS) + "})();\n"
    html = (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            names=names,
            headline=headline(page),
            warnings=[
                (name, text)
                for name, run in zip(names, page["runs"], strict=True)
                for text in run.get("warnings") or []
            ],
            about=_about(page["runs"]),
            config=matrix([run.get("config") for run in page["runs"]]),
            policy=_policy(style, script),
            # These are our own files, and JSON that _data_block has made safe.
            style=Markup(style),
            script=Markup(script),
            data=_data_block(drawn),
        )
    )
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", html)


def checked_page(data: Mapping[str, Any]) -> dict[str, Any]:
    """The page data with empty texts and lists where it has none.

    Raises:
        DataError: something is not of the shape that the page reads; the message names it.
    """
    if data.get("version") != VERSION:
        raise DataError(
            f"`version` of the page data must be {VERSION}; got {data.get('version')!r}. Build the data with "
            "the same version of mmft that shows it."
        )
    page: dict[str, Any] = {name: str(data.get(name) or "") for name in TEXTS}
    for name in LISTS:
        page[name] = [] if data.get(name) is None else data[name]
        if not isinstance(page[name], (list, tuple)):
            raise DataError(f"`{name}` of the page data must be a list; got {type(page[name]).__name__}.")
    for table in page["tables"]:
        _check_table(table)
    for chart in page["charts"]:
        _check_chart(chart, len(page["runs"]))
    for sample in page["samples"]:
        _check_sample(sample, page["answers"])
    for figure in page["figures"]:
        _check_picture(figure.get("src"), f"figure {figure.get('title')!r}")
    return page


def _check_table(table: Mapping[str, Any]) -> None:
    for row in table["rows"]:
        if len(row["cells"]) != len(table["columns"]):
            raise DataError(
                f"table {table['title']!r} has {len(table['columns'])} columns, but its row {row['cells']!r} "
                f"has {len(row['cells'])} cells; give each column one."
            )


def _check_chart(chart: Mapping[str, Any], num_runs: int) -> None:
    for series in chart["series"]:
        told = f"series {series['name']!r} of chart {chart['title']!r}"
        if len(series["x"]) != len(series["y"]):
            raise DataError(
                f"{told} has {len(series['x'])} x but {len(series['y'])} y; a gap is a y of null."
            )
        if not all(map(is_number, series["x"])):
            raise DataError(f"{told} has an x that is no number; leave such points out.")
        if not 0 <= series["run"] < num_runs:
            raise DataError(f"{told} is of run {series['run']}, but `runs` has {num_runs}; count from 0.")


def _check_sample(sample: Mapping[str, Any], names: Sequence[str]) -> None:
    told = f"sample {sample.get('key', sample.get('id'))!r}"
    if len(sample["answers"]) != len(names) or not names:
        raise DataError(
            f"{told} has {len(sample['answers'])} answers, but `answers` names {len(names)}; each sample "
            "needs one of each, and one at least."
        )
    for picture in sample.get("pictures") or []:
        _check_picture(picture, told)
    for answer in sample["answers"]:
        for name in TOKEN_NUMBERS:
            numbers, tokens = answer.get(name), answer.get("tokens") or []
            if numbers is not None and len(numbers) != len(tokens):
                raise DataError(
                    f"{told} has {len(tokens)} tokens but {len(numbers)} `{name}`; give each one."
                )
    heat = sample.get("heat")
    if heat and heat.get("patches"):
        rows, columns = heat["grid"]
        if rows * columns != len(heat["patches"]):
            raise DataError(
                f"{told} has {len(heat['patches'])} patches on a grid of {rows} x {columns}; give each cell "
                "one."
            )


def _check_picture(source: Any, told: str) -> None:
    if not isinstance(source, str) or not source.startswith(PICTURES):
        raise DataError(
            f"a picture of {told} is {str(source)[:40]!r}; the page fetches nothing, so give a data: URI of "
            "a JPEG, PNG, GIF or WebP picture in base64."
        )


def headline(page: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page says largest: the first optimised measure of a table that has a before and an after."""
    optimised = {measure["id"] for measure in page["measures"] if measure.get("optimised")}
    for table in page["tables"]:
        if not {"before", "after"} <= set(table["columns"]):
            continue
        for row in table["rows"]:
            if row.get("measure") in optimised:
                cells = dict(zip(table["columns"], row["cells"], strict=True))
                return {
                    "label": row["cells"][0],
                    # An interval that stands with a number is left to the table.
                    "before": cells["before"].partition(" [")[0],
                    "after": cells["after"].partition(" [")[0],
                    "change": cells.get("change", ""),
                    "interval": next((cells[name] for name in table["columns"] if "interval" in name), ""),
                    "tone": row.get("tone"),
                }
    return None


def matrix(facts: Sequence[Mapping[str, Any] | None]) -> list[Entry]:
    """Facts of several runs side by side, in the order they come up; empty where a run has none."""
    names = list(dict.fromkeys(name for each in facts for name in each or {}))
    return [Entry(name, tuple(_text((each or {}).get(name, "")) for each in facts)) for name in names]


def _about(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Entry]]]:
    tables = [
        ("Facts", matrix([dict(run.get("facts") or []) for run in runs])),
        ("Hardware", matrix([_known(run.get("hardware")) for run in runs])),
        ("Versions", matrix([_known(run.get("versions")) for run in runs])),
    ]
    return [(title, entries) for title, entries in tables if entries]


def _known(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (facts or {}).items() if value is not None}


def _text(value: Any) -> str:
    """A setting as its file would say it; None is said, not left blank."""
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)


def _environment() -> Environment:
    # Undefined is what the page data leaves out, which the template asks for before it shows it.
    made = Environment(loader=FileSystemLoader(HTML), autoescape=True, keep_trailing_newline=True)
    made.filters["tone"] = lambda tone: f"tone-{tone if tone in TONES else 'neutral'}"
    return made


def _joined(names: Sequence[str]) -> str:
    return "\n".join((HTML / name).read_text(encoding="utf-8") for name in names)


def _policy(style: str, script: str) -> str:
    """What the page may do: show its own pictures, with its own style and script."""
    allowed = [
        f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
        for source in (style, script)
    ]
    return (
        f"default-src 'none'; img-src data:; style-src {allowed[0]}; script-src {allowed[1]}; base-uri "
        "'none'; form-action 'none'"
    )


def _data_block(value: Any) -> Markup:
    # ASCII, so that no separator that ends a line of script and no half of a surrogate pair is left in it.
    text = json.dumps(plain(value), separators=(",", ":"), allow_nan=False)
    for character in "&<>":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
