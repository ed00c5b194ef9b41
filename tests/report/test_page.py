"""The report page as text: one file, safe, the same each time, readable; and what data it refuses."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from mmft.errors import DataError
from mmft.report.page import HTML, SCRIPTS, STYLES, Entry, headline, matrix, render_page
from tests.report.page_support import comparison, heat, page_data, picture, run, sample

NAMESPACE = "http://www.w3.org/2000/svg"
"""The name of SVG, which nobody fetches."""


def embedded(page: str) -> str:
    """What stands in the page's block of data."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return found


def test_the_page_refers_to_nothing_outside():
    page = render_page(page_data())
    # The name of SVG, which is fetched by nobody.
    assert re.findall(r"(?:https?:)?//[\w.]+\.[a-z]+[^\"' ]*", page) == [
        NAMESPACE.removeprefix("")[0:0] or NAMESPACE.rstrip("'")
    ]
    assert not re.search(r"@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|\ssrc=(?!\"data:)", page)


def test_the_page_is_the_same_each_time():
    assert render_page(page_data()) == render_page(copy.deepcopy(page_data()))


def test_the_data_is_whole_and_safe_to_stand_in_a_script():
    text = "</script><!--&\u2028\u2029\ud800\x00é"
    data = page_data(samples=[sample(0, prompt=text)])
    block = embedded(render_page(data))
    assert not re.search("[<>&\u2028\u2029]", block)
    assert block.isascii()
    held = json.loads(block)
    assert held["samples"][0]["prompt"] == text
    for name in ("charts", "measures", "columns", "answers", "samples"):
        assert held[name] == data[name]
    assert held["runs"] == ["quickstart"]
    # Shown by the template, so not said twice.
    assert set(held) == {"charts", "measures", "columns", "answers", "samples", "runs", "num_samples_total"}


def test_numbers_that_are_none_are_missing():
    row = sample(0)
    row["answers"][0]["reward"] = float("nan")
    row["answers"][1]["rewards"]["bleu"] = float("inf")
    held = json.loads(embedded(render_page(page_data(samples=[row]))))
    assert held["samples"][0]["answers"][0]["reward"] is None
    assert held["samples"][0]["answers"][1]["rewards"]["bleu"] is None


def test_the_number_of_all_samples_is_that_of_the_page_unless_told():
    assert json.loads(embedded(render_page(page_data(3))))["num_samples_total"] == 3
    assert json.loads(embedded(render_page(page_data(3, num_samples_total=70))))["num_samples_total"] == 70


def test_text_of_the_template_is_escaped():
    evil = "<img src=x onerror=alert(1)>\"'&"
    data = page_data(
        title=evil,
        subtitle=evil,
        kind=evil,
        notes=[evil],
        runs=[run(evil, warnings=[evil], facts=[[evil, evil]], config={evil: evil}, versions={evil: evil})],
        tables=[
            {
                "title": evil,
                "caption": evil,
                "columns": [evil],
                "rows": [{"cells": [evil], "tone": evil, "measure": evil}],
            }
        ],
        figures=[{"title": evil, "caption": evil, "src": picture()}],
    )
    page = render_page(data)
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;") > 15
    assert 'class="tone-neutral"' in page


def test_the_policy_names_the_style_and_the_script_of_the_page():
    page = render_page(page_data())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert len(re.findall("'sha256-[A-Za-z0-9+/=]{44}'", policy)) == 2


def test_every_file_of_the_page_is_in_it():
    files = {path.name for path in HTML.iterdir() if path.suffix in (".js", ".css")}
    assert files == {*SCRIPTS, *STYLES}
    page = render_page(page_data())
    for name in files:
        assert (HTML / name).read_text(encoding="utf-8") in page


@pytest.mark.parametrize("path", sorted(HTML.iterdir()), ids=lambda path: path.name)
def test_files_of_the_page_are_short_and_make_no_markup(path: Any):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert max(map(len, text.splitlines())) <= 140
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|\beval\b|new Function|\|\s*safe", text
    )


def test_a_page_of_nothing_is_a_page():
    page = render_page({"version": 1})
    assert "neither scores nor curves nor samples" in page
    assert 'id="curves"' not in page
    assert 'href="#samples"' not in page
    assert (
        render_page(
            {"version": 1} | {name: None for name in ("runs", "tables", "samples", "figures", "title")}
        )
        == page
    )


def test_the_largest_numbers_are_those_of_the_first_measure_that_was_optimised():
    page = page_data()
    # bleu stands first in the table and was not optimised.
    assert headline(page) == {
        "label": "total reward",
        "before": "0.5",
        "after": "0.7",
        "change": "+0.2",
        "interval": "[0.1, 0.3]",
        "tone": "good",
    }
    assert "headline-numbers" in render_page(page).split("</style>")[1]


def test_intervals_beside_numbers_are_left_to_the_table():
    row = {"cells": ["return", "0.1 [0.0, 0.2]", "0.9"], "measure": "reward"}
    tables = [{"title": "t", "columns": ["measure", "before", "after"], "rows": [row]}]
    found = headline(page_data(tables=tables))
    assert found is not None
    assert (found["before"], found["after"], found["change"], found["interval"]) == ("0.1", "0.9", "", "")


@pytest.mark.parametrize("others", [{"measures": []}, {"tables": []}])
def test_without_an_optimised_measure_nothing_is_said_large(others: dict[str, Any]):
    assert headline(page_data(**others)) is None
    assert "headline-numbers" not in render_page(page_data(**others)).split("</style>")[1]


def test_a_table_without_before_and_after_is_no_headline():
    data = comparison()
    row = {"cells": ["total reward", "1", "2", "3"], "measure": "reward"}
    data["tables"] = [{"title": "t", "columns": ["measure", "first", "second", "third"], "rows": [row]}]
    assert headline(data) is None


def test_facts_of_runs_are_joined_by_name():
    found = matrix([{"a": 1, "b": None}, None, {"b": "x", "c": [1.5, {"d": True}]}])
    assert found == [
        Entry("a", ("1", "", "")),
        Entry("b", ("null", "", "x")),
        Entry("c", ("", "", '[1.5, {"d": true}]')),
    ]
    assert [entry.differs for entry in matrix([{"a": 1, "b": 2}, {"a": 1, "b": 3}])] == [False, True]


def test_hardware_and_versions_that_are_not_known_are_left_out():
    page = render_page(page_data())
    assert "a processor" in page
    assert ">gpu<" not in page
    assert re.search(r">resume</th><td dir=\"auto\">null<", page)


def test_warnings_of_several_runs_say_whose_they_are():
    runs = [run("one", warnings=["first"]), run("two", warnings=["second"])]
    page = render_page(page_data(runs=runs, charts=[]))
    assert "2 warnings" in page
    assert "<b>two</b>: second" in page
    assert "<b>" not in render_page(page_data(runs=[run(warnings=["first"])]))


def first(data: dict[str, Any]) -> dict[str, Any]:
    return data["samples"][0]


def series(data: dict[str, Any]) -> dict[str, Any]:
    return data["charts"][0]["series"][0]


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    data = page_data(samples=[sample(0, heat=heat())])
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data.update(version=2),
            r"`version` of the page data must be 1; got 2\. Build the data",
        ),
        (lambda data: data.pop("version"), r"`version` of the page data must be 1; got None"),
        (lambda data: data.update(charts={}), r"`charts` of the page data must be a list; got dict"),
        (lambda data: data.update(samples="x"), r"`samples` of the page data must be a list; got str"),
        (
            lambda data: data["tables"][0]["rows"][0]["cells"].pop(),
            r"table 'Before and after' has 5 columns, but its row .* has 4 cells",
        ),
        (
            lambda data: series(data)["y"].pop(),
            r"series 'reward' of chart 'Reward' has 5 x but 4 y; a gap is",
        ),
        (
            lambda data: series(data)["x"].__setitem__(2, None),
            r"series 'reward' of chart 'Reward' has an x that is no number",
        ),
        (lambda data: series(data)["x"].__setitem__(2, float("nan")), r"has an x that is no number"),
        (lambda data: series(data).update(run=1), r"is of run 1, but `runs` has 1; count from 0"),
        (lambda data: series(data).update(run=-1), r"is of run -1"),
        (
            lambda data: first(data)["answers"].pop(),
            r"sample 'validation 0' has 1 answers, but `answers` names 2",
        ),
        (
            lambda data: (first(data).update(answers=[]), data.update(answers=[])),
            r"has 0 answers, but `answers` names 0; .* one at least",
        ),
        (
            lambda data: first(data)["answers"][1]["logps"].pop(),
            r"sample 'validation 0' has 5 tokens but 4 `logps`",
        ),
        (lambda data: first(data)["answers"][0]["values"].append(1.0), r"has 5 tokens but 6 `values`"),
        (lambda data: first(data)["answers"][0]["advantages"].pop(), r"has 5 tokens but 4 `advantages`"),
        (lambda data: first(data)["heat"].update(grid=[2, 2]), r"has 6 patches on a grid of 2 x 2"),
        (
            lambda data: first(data).update(pictures=["javascript:alert(1)"]),
            r"a picture of sample 'validation 0' is 'javascript:alert\(1\)'; .* data: URI",
        ),
        (
            lambda data: first(data).update(pictures=["data:image/svg+xml;base64,AAAA"]),
            r"is 'data:image/svg\+xml;base64,AAAA'",
        ),
        (
            lambda data: data["figures"][0].update(src="plot.png"),
            r"a picture of figure 'Components' is 'plot.png'",
        ),
        (lambda data: data["figures"][0].pop("src"), r"a picture of figure 'Components' is 'None'"),
    ],
)
def test_data_that_the_page_cannot_show_is_refused(change: Callable[[dict[str, Any]], Any], message: str):
    render_page(changed(lambda data: None))
    with pytest.raises(DataError, match=message):
        render_page(changed(change))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_pictures_of_the_usual_kinds_are_taken(kind: str):
    assert picture("red", kind) in embedded(
        render_page(page_data(samples=[sample(0, pictures=[picture("red", kind)])]))
    )
