"""Curves of a report: what is drawn, read off, hidden and smoothed."""

# ruff: noqa: RUF001 - the page sets a minus as a minus, and a missing number as a dash

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from mmft.report.page import HTML
from tests.browser.report_support import open_report
from tests.report.page_support import chart, comparison, page_data, run


def series(y: list[Any], x: list[float] | None = None, **others: Any) -> dict[str, Any]:
    return {"run": 0, "name": "reward", "x": x or [*range(1, len(y) + 1)], "y": y, "smooth": True} | others


def plot(page: Page, title: str = "Reward") -> Locator:
    return page.get_by_role("slider", name=f"{title}: read values")


def read(page: Page) -> list[str]:
    return page.locator(".readout:visible").first.locator("b, span").all_inner_texts()


def path(page: Page, kind: str = "line") -> str:
    return page.locator(f".{kind}").first.get_attribute("d") or ""


def points(drawn: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", drawn)]


def test_a_line_keeps_the_proportions_of_its_numbers(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(charts=[chart(references=[])]), "curves&smooth=0")
    xs, ys = zip(*points(path(page)), strict=True)
    # Steps are even; 1, 2, 4, 8, 16 stand 1, 2, 4 and 8 units above one another, upwards.
    assert [b - a for a, b in itertools.pairwise(xs)] == pytest.approx([xs[1] - xs[0]] * 4, abs=0.2)
    unit = ys[0] - ys[1]
    assert unit > 0
    assert [a - b for a, b in itertools.pairwise(ys)] == pytest.approx(
        [unit, 2 * unit, 4 * unit, 8 * unit], abs=0.6
    )


def test_arrows_read_one_step_after_another(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(), "curves&smooth=0")
    plot(page).focus()
    assert read(page) == ["step 5", "reward 16"]
    for key, step, value in (
        ("Home", 1, "1"),
        ("ArrowLeft", 1, "1"),
        ("ArrowRight", 2, "2"),
        ("End", 5, "16"),
        ("ArrowDown", 4, "8"),
        ("PageDown", 1, "1"),
        ("ArrowUp", 2, "2"),
        ("PageUp", 5, "16"),
    ):
        plot(page).press(key)
        assert read(page) == [f"step {step}", f"reward {value}"]
    expect(plot(page)).to_have_attribute("aria-valuetext", "step 5; reward 16")
    plot(page).press("Escape")
    expect(page.locator(".readout")).to_be_hidden()
    plot(page).press("Home")
    page.get_by_role("button", name="Table").focus()
    expect(page.locator(".readout")).to_be_hidden()


def test_the_pointer_reads_the_nearest_step_of_all_series(page: Page, tmp_path: Path):
    both = [series([1.0, 2.0, 3.0]), series([10.0, None, 30.0], [1, 2, 5], name="other")]
    open_report(page, tmp_path, page_data(charts=[chart(series=both)]), "curves&smooth=0")
    plot(page).scroll_into_view_if_needed()
    box = plot(page).bounding_box()
    assert box is not None
    x = points(path(page))[1][0]
    page.mouse.move(box["x"] + x + 3, box["y"] + 60)
    assert read(page) == ["step 2", "reward 2", "other –"]
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 60)
    # The first series ends before: it is read where it is nearest, and that is said.
    assert read(page) == ["step 5", "reward 3 (at 3)", "other 30"]
    assert page.locator(".cross circle").count() == 2
    page.mouse.move(box["x"] + 10, box["y"] - 200)
    expect(page.locator(".readout")).to_be_hidden()


def test_smoothing_moves_the_line_and_leaves_the_raw_one(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(), "curves&smooth=0")
    raw = path(page)
    expect(page.locator(".raw")).to_have_count(0)
    slider = page.get_by_role("slider", name="Smoothing")
    slider.fill("0.5")
    expect(page.locator("#curves output")).to_have_text("0.50")
    assert path(page, "raw") == raw
    assert path(page) != raw
    plot(page).focus()
    plot(page).press("Home")
    plot(page).press("ArrowRight")
    # Weight 0.5 of 1 and 2: (0.5 * 0.5 * 1 + 0.5 * 2) / (0.5 * 0.5 + 0.5) = 1.25 / 0.75 = 1.667.
    assert read(page) == ["step 2", "reward 2, smoothed 1.66667"]
    expect(page).to_have_url(re.compile("#curves&smooth=0.5$"))
    page.reload()
    expect(slider).to_have_value("0.5")


def test_what_is_not_to_be_smoothed_is_not(page: Page, tmp_path: Path):
    open_report(
        page, tmp_path, page_data(charts=[chart(series=[series([1.0, 9.0], smooth=False)])]), "smooth=0.9"
    )
    expect(page.locator(".line")).to_have_count(1)
    expect(page.locator(".raw")).to_have_count(0)


def test_a_legend_hides_a_series_and_the_axis_follows(page: Page, tmp_path: Path):
    both = [series([1.0, 2.0]), series([100.0, 200.0], name="other")]
    open_report(page, tmp_path, page_data(charts=[chart(series=both, references=[])]), "smooth=0")
    before = path(page)
    button = page.get_by_role("button", name="other")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".line")).to_have_count(1)
    assert path(page) != before
    expect(page).to_have_url(re.compile("&smooth=0&off=0.1$"))
    page.reload()
    expect(page.locator(".line")).to_have_count(1)
    page.get_by_role("button", name="reward", exact=True).click()
    expect(page.locator(".line")).to_have_count(0)
    plot(page).focus()
    expect(page.locator(".readout")).to_be_hidden()
    button.click()
    expect(page.locator(".line")).to_have_count(1)


def test_a_run_has_one_colour_in_all_charts_and_leaves_all_of_them(page: Page, tmp_path: Path):
    open_report(page, tmp_path, comparison(), "smooth=0")
    colour = "element => getComputedStyle(element).stroke"
    drawn = [
        [line.evaluate(colour) for line in figure.locator(".line").all()]
        for figure in page.locator(".chart").all()
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
    button = page.get_by_role("group", name="Runs").get_by_role("button", name="second")
    button.click()
    expect(page.locator(".line")).to_have_count(4)
    expect(button).to_have_attribute("aria-pressed", "false")
    assert [line.evaluate(colour) for line in page.locator(".line").all()] == [drawn[0][0], drawn[0][2]] * 2
    plot(page).focus()
    assert read(page) == ["step 2", "first 1", "third 1"]
    # Each run has one series, and its legend stands above all charts.
    expect(page.locator(".chart .legend button")).to_have_count(0)
    expect(page).to_have_url(re.compile("hide=1$"))
    page.reload()
    expect(page.locator(".line")).to_have_count(4)


def test_several_series_of_a_run_are_told_apart_by_dashes(page: Page, tmp_path: Path):
    four = [
        series([float(place), 1.0], run=place // 2, name=("policy", "value")[place % 2]) for place in range(4)
    ]
    open_report(page, tmp_path, page_data(runs=[run("one"), run("two")], charts=[chart("Loss", series=four)]))
    expect(page.locator(".chart .legend button")).to_have_text(
        ["one policy", "one value", "two policy", "two value"]
    )
    dashed = [("dashed" in (line.get_attribute("class") or "")) for line in page.locator(".line").all()]
    assert dashed == [False, True, False, True]


def test_a_chart_can_be_read_as_a_table(page: Page, tmp_path: Path):
    both = [series([1.0, None]), series([0.00025], [2], name="other")]
    open_report(page, tmp_path, page_data(charts=[chart(series=both)]))
    button = page.get_by_role("button", name="Table")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    rows = page.get_by_role("region", name="Reward as a table").get_by_role("row")
    assert [row.locator("th, td").all_inner_texts() for row in rows.all()] == [
        ["step", "reward", "other"],
        ["1", "1", "–"],
        ["2", "–", "0.00025"],
    ]
    expect(plot(page)).to_be_hidden()
    button.click()
    expect(plot(page)).to_be_visible()
    assert page.locator(".chart-table").is_hidden()


def test_references_are_named_with_their_value_and_in_view(page: Page, tmp_path: Path):
    lines = [
        {"label": "before", "y": -40.0},
        {"label": "after", "y": -40.0},
        {"label": "no number", "y": None},
    ]
    open_report(page, tmp_path, page_data(charts=[chart(references=lines)]))
    labels = page.locator(".reference-label")
    expect(labels).to_have_text(["before −40", "after −40"])
    boxes = [label.bounding_box() for label in labels.all()]
    frame = plot(page).bounding_box()
    assert frame is not None
    assert all(box and frame["y"] <= box["y"] <= frame["y"] + frame["height"] for box in boxes)
    one, other = (box for box in boxes if box)
    assert (
        one["x"] + one["width"] <= other["x"]
        or other["x"] + other["width"] <= one["x"]
        or abs(one["y"] - other["y"]) > 10
    )


def test_gaps_stay_gaps_and_lonely_numbers_are_points(page: Page, tmp_path: Path):
    charts = [chart(series=[series([1.0, 2.0, None, 3.0, None, 4.0, 5.0])])]
    open_report(page, tmp_path, page_data(charts=charts), "smooth=0")
    drawn = path(page)
    assert drawn.count("M") == 3
    assert drawn.count("h0") == 1
    assert len(points(drawn)) == 5


ODD: list[list[Any]] = [
    [],
    [None, None],
    [float("nan")],
    [3.0],
    [0.0, 0.0],
    [-5.0, -5.0],
    [1e-7, 3e-7],
    [1e12, -1e12],
    [1e-300, 1e300],
]


def test_odd_numbers_never_reach_the_drawing(page: Page, tmp_path: Path):
    charts = [chart(f"Odd {place}", series=[series(y)], references=[]) for place, y in enumerate(ODD)]
    open_report(page, tmp_path, page_data(charts=charts))
    for place in range(len(ODD)):
        drawn = plot(page, f"Odd {place}")
        assert not re.search("NaN|Infinity|undefined", drawn.inner_html())
        drawn.focus()
        drawn.press("ArrowRight")
        assert page.locator(".readout:visible").count() == (len(ODD[place]) > 0)


def test_steps_in_disorder_are_drawn_in_order(page: Page, tmp_path: Path):
    open_report(
        page, tmp_path, page_data(charts=[chart(series=[series([3.0, 1.0, 2.0], [30, 10, 20])])]), "smooth=0"
    )
    plot(page).focus()
    plot(page).press("Home")
    assert read(page) == ["step 10", "reward 1"]
    xs = [x for x, _ in points(path(page))]
    assert xs == sorted(xs)


def test_charts_stand_under_the_heading_of_their_group(page: Page, tmp_path: Path):
    charts = [chart("A", group="Rewards"), chart("B", group="Critic"), chart("C", group="Rewards")]
    open_report(page, tmp_path, page_data(charts=charts))
    assert page.locator("#curves h3, #curves h4").all_inner_texts() == ["Rewards", "A", "C", "Critic", "B"]


SCALES = [
    ("niceStep(1, 4)", 0.5),  # 0.25 is above 0.2, so the next round one
    ("niceStep(0.7, 5)", 0.2),  # 0.14
    ("niceStep(400, 4)", 100),
    ("niceStep(3e-7, 3)", 1e-7),
    ("ticksWithin(-0.3, 1, 0.5)", [0, 0.5, 1]),
    ("ticksWithin(1, 399, 100)", [100, 200, 300]),
    ("tickLabel(0.30000000000000004, 0.1)", "0.3"),
    ("tickLabel(-0.5, 0.25)", "−0.5"),
    ("tickLabel(12500, 500)", "12,500"),
    ("tickLabel(0, 0.1)", "0"),
    ("tickLabel(0.00002, 0.00001)", "2e−5"),
    ("tickLabel(2000000, 500000)", "2e6"),
    ("axisRange([null, 2, -1])", [-1, 2]),
    ("axisRange([])", [0, 1]),
    ("axisRange([-20])", [-22, -18]),
    ("axisRange([0, 0])", [0, 1]),
    ("smoothed([1, null, 2], 0.5)[1]", None),
    ("smoothed([1, null, 2], 0.5)[2]", 5 / 3),
    ("smoothed([4, 4, 4], 0.9)", [4, 4, 4]),
    ("nearestIndex([1, 2, 10], 5)", 1),
    ("nearestIndex([1, 2, 10], 7)", 2),
    ("nearestIndex([1, 2, 10], -5)", 0),
    ("nearestIndex([5], 9)", 0),
    ("nearestIndex([], 1)", -1),
    ("quantile([3, null, 1, 2], 0.5)", 2),
    ("quantile([1, 2], 1)", 2),
    ("quantile([], 0.5)", 0),
]


def test_the_arithmetic_of_axes(page: Page):
    source = "\n".join((HTML / name).read_text(encoding="utf-8") for name in ("dom.js", "scales.js"))
    results = page.evaluate(f"() => {{ {source}\nreturn [{', '.join(call for call, _ in SCALES)}]; }}")
    for (call, expected), result in zip(SCALES, results, strict=True):
        assert result == (expected if isinstance(expected, str) else pytest.approx(expected)), call
