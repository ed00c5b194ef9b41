"""Samples of a report: cards, what chooses and sorts them, the large picture."""

# ruff: noqa: RUF001 - the page sets a minus as a minus, and a missing number as a dash

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.report_support import count, keys, open_report
from tests.report.page_support import GROUPS, answer, comparison, heat, page_data, picture, sample

# Rewards of 0 and 3 rise (by 0.25, 0.253), those of 1 and 4 fall (by 0.251, 0.254), 2 and 5 stay.


def test_a_card_tells_its_sample(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    card = page.locator(".card").first
    assert card.locator("h3").inner_text() == "validation 0"
    assert card.locator(".total").inner_text() == "0.500 → 0.750 ▲ +0.250"
    assert card.locator(".chip").all_inner_texts() == ["group one object", "size 0"]
    assert card.locator(".answer-name").all_inner_texts() == ["before", "after"]
    assert card.locator(".answer-text").all_inner_texts() == [
        "a red circle number0 .",
        "a blue circle number0 .",
    ]
    assert card.locator("del").all_inner_texts() == ["red "]
    assert card.locator("ins").all_inner_texts() == ["blue "]
    assert card.locator(".answer").first.locator("ins").count() == 0
    assert card.locator(".parts td, .parts th").all_inner_texts() == ["bleu", "", "0.500 → 0.250", "▼ −0.250"]
    expect(card.get_by_text("reference 0")).to_be_hidden()
    card.get_by_text("2 references").click()
    expect(card.get_by_text("reference 0")).to_be_visible()


def test_differences_are_seen_without_colours(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    line = "element => getComputedStyle(element).textDecorationLine"
    assert page.locator("del").first.evaluate(line) == "line-through"
    assert page.locator("ins").first.evaluate(line) == "underline"


def test_scores_lie_on_the_scale_of_all_samples(page: Page, tmp_path: Path):
    # bleu goes from 0.247 (sample 3, after) to 0.754 (sample 4, after); sample 0 has 0.5 and 0.25.
    open_report(page, tmp_path, page_data())
    places = [
        float(dot.get_attribute("cx") or "nan")
        for dot in page.locator(".card").first.locator(".track circle").all()
    ]
    expected = [5 + 90 * (score - 0.247) / (0.754 - 0.247) for score in (0.5, 0.25)]
    assert [round(place, 6) for place in places] == [round(place, 6) for place in expected]


def test_every_order_of_samples(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    sort = page.get_by_label("Sort by")
    orders = {
        "total reward: highest first": [3, 0, 2, 5, 1, 4],
        "total reward: lowest first": [4, 1, 2, 5, 0, 3],
        "total reward: largest rise first": [3, 0, 2, 5, 1, 4],
        "total reward: largest fall first": [4, 1, 2, 5, 0, 3],
        "bleu: largest rise first": [4, 1, 2, 5, 0, 3],
        "bleu: largest fall first": [3, 0, 2, 5, 1, 4],
        "bleu: highest first": [4, 1, 2, 5, 0, 3],
        "bleu: lowest first": [3, 0, 2, 5, 1, 4],
        "as in the data": [0, 1, 2, 3, 4, 5],
    }
    for label, order in orders.items():
        sort.select_option(label=label)
        assert keys(page) == order, label
    # A measure of the whole corpus is no order.
    assert len(sort.locator("option").all()) == len(orders)


def test_samples_that_could_not_be_judged_come_last_either_way(page: Page, tmp_path: Path):
    samples = [sample(number) for number in range(4)]
    samples[1]["answers"][0] = answer("a", float("nan"), None)
    samples[2]["answers"][1] = answer("b", None, None)
    open_report(page, tmp_path, page_data(samples=samples))
    for order, expected in (("largest fall", [0, 3, 1, 2]), ("largest rise", [3, 0, 1, 2])):
        page.get_by_label("Sort by").select_option(label=f"total reward: {order} first")
        assert keys(page) == expected
    assert page.locator(".card").nth(2).locator(".total").inner_text() == "– → 0.249 –"
    page.get_by_label("Direction").select_option("same")
    assert keys(page) == []


def test_samples_are_filtered_by_the_direction_of_any_measure(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    ways = {
        "total reward": {"up": [0, 3], "down": [1, 4], "unchanged": [2, 5]},
        "bleu": {"up": [1, 4], "down": [0, 3], "any": [0, 1, 2, 3, 4, 5]},
    }
    for measure, way, expected in [
        (name, way, rows) for name, found in ways.items() for way, rows in found.items()
    ]:
        page.get_by_label("Change of").select_option(label=measure)
        page.get_by_label("Direction").select_option(label=way)
        assert keys(page) == expected
        assert count(page) == f"{len(expected)} of 6 samples"


def test_samples_are_filtered_by_columns_together(page: Page, tmp_path: Path):
    samples = [sample(number) for number in range(6)]
    del samples[5]["columns"]
    open_report(page, tmp_path, page_data(samples=samples))
    for group, expected in zip(GROUPS, ([0, 3], [1, 4], [2]), strict=True):
        page.get_by_label("group").select_option(group)
        assert keys(page) == expected
    page.get_by_label("group").select_option("–")
    assert keys(page) == [5]
    page.get_by_label("group").select_option("two objects")
    page.get_by_label("size").select_option("0")
    assert keys(page) == [4]
    expect(page).to_have_url(re.compile(r"in.group=two\+objects&in.size=0$"))


def test_the_search_looks_into_all_text_in_any_case(page: Page, tmp_path: Path):
    samples = [sample(number) for number in range(4)]
    samples[3]["prompt"] = "How MANY?"
    open_report(page, tmp_path, page_data(samples=samples))
    found = {
        "NUMBER2": [2],
        "reference 1": [1],
        "how many": [3],
        "blue": [0, 1, 2, 3],
        "[": [],
        "validation 3": [3],
    }
    for words, expected in found.items():
        page.get_by_label("Search").first.fill(words)
        expect(page.locator(".card h3")).to_have_text([f"validation {number}" for number in expected])
        assert count(page) == f"{len(expected)} of 4 samples"


def test_only_changed_leaves_equal_answers_out(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    button = page.get_by_role("button", name="Only changed")
    button.click()
    assert keys(page) == [0, 1, 3, 4]
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    assert keys(page) == [0, 1, 2, 3, 4, 5]


def test_the_worst_regressions_come_first_and_reset_takes_all_back(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(), "curves&smooth=0.5")
    page.get_by_role("button", name="Worst regressions first").click()
    assert keys(page) == [4, 1, 2, 5, 0, 3]
    expect(page.get_by_label("Sort by")).to_have_value("fall:reward")
    page.get_by_label("group").select_option("two objects")
    page.get_by_label("Direction").select_option("down")
    page.get_by_role("button", name="Only changed").click()
    page.get_by_label("Search").first.fill("blue")
    expect(page).to_have_url(re.compile("q=blue"))
    page.get_by_role("button", name="Reset").click()
    assert keys(page) == [0, 1, 2, 3, 4, 5]
    expect(page.get_by_label("Search").first).to_have_value("")
    # What is no choice of samples stays.
    expect(page).to_have_url(re.compile("#curves&smooth=0.5$"))


def test_an_address_shows_its_view_when_opened_and_when_changed(page: Page, tmp_path: Path):
    view = "samples&q=blue&sort=high%3Arewards%2Fbleu&measure=rewards%2Fbleu&went=up&in.group=two+objects"
    view += "&changed=1"
    open_report(page, tmp_path, page_data(), view)
    assert keys(page) == [4, 1]
    for label, value in (
        ("Sort by", "high:rewards/bleu"),
        ("Change of", "rewards/bleu"),
        ("Direction", "up"),
        ("group", GROUPS[1]),
    ):
        expect(page.get_by_label(label)).to_have_value(value)
    expect(page.get_by_label("Search").first).to_have_value("blue")
    expect(page.get_by_role("button", name="Only changed")).to_have_attribute("aria-pressed", "true")
    page.evaluate("location.hash = '#samples&in.group=one+object'")
    expect(page.locator(".count")).to_have_text("2 of 6 samples")
    assert keys(page) == [0, 3]
    expect(page.get_by_label("Direction")).to_have_value("")


def test_the_count_is_announced(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(num_samples_total=3000))
    assert count(page) == "6 of 6 samples (this page holds 6 of 3,000 held-out rows)"
    expect(page.locator(".count")).to_have_attribute("aria-live", "polite")


def test_cards_come_as_they_are_scrolled_to(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(80))
    expect(page.locator(".card")).to_have_count(24)
    more = page.get_by_role("button", name="Show 24 more of 56")
    more.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.card').length >= 48")
    end = "scrollTo({top: document.body.scrollHeight})"
    page.wait_for_function(f"() => {{ {end}; return document.querySelectorAll('.card').length === 80; }}")
    assert keys(page) == list(range(80))
    expect(page.locator(".more")).to_be_hidden()


def test_of_two_thousand_samples_a_filter_shows_the_right_ones(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(2000))
    page.get_by_label("Direction").select_option("down")
    assert count(page) == "667 of 2,000 samples"
    assert keys(page) == list(range(1, 72, 3))
    page.get_by_role("button", name="Worst regressions first").click()
    assert keys(page)[:3] == [1999, 1996, 1993]


def test_what_was_opened_in_a_card_stays_open(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    page.get_by_text("2 references").first.click()
    page.get_by_role("button", name="Worst regressions first").click()
    expect(page.get_by_text("reference 0")).to_be_visible()
    expect(page.get_by_text("reference 4")).to_be_hidden()


def test_one_answer_alone_has_no_changes_to_choose_by(page: Page, tmp_path: Path):
    samples = [
        sample(number) | {"answers": sample(number)["answers"][1:], "diff": None} for number in range(3)
    ]
    open_report(page, tmp_path, page_data(samples=samples, answers=["after"]))
    assert page.locator(".total").all_inner_texts() == ["0.750", "0.249", "0.500"]
    for gone in ("Change of", "Direction", "Compare"):
        expect(page.get_by_label(gone)).to_have_count(0)
    for gone in ("Only changed", "Worst regressions first", "total reward"):
        expect(page.get_by_role("button", name=gone)).to_have_count(0)
    page.get_by_label("Sort by").select_option(label="total reward: lowest first")
    assert keys(page) == [1, 2, 0]


def test_any_two_runs_are_compared(page: Page, tmp_path: Path):
    open_report(page, tmp_path, comparison())
    page.get_by_label("Sort by").select_option(label="total reward: largest fall first")
    # third - first = (0.25, -0.251, 0, 0.253, -0.254, 0) + 1 - 0.1 * (0, 1, 2, 3, 4, 5)
    assert keys(page) == [4, 5, 1, 2, 3, 0]
    page.get_by_label("Compare").select_option(label="second")
    # third - second = 1 - 0.1 * number
    assert keys(page) == [5, 4, 3, 2, 1, 0]
    assert page.locator(".total").last.inner_text() == "0.750 → 1.750 ▲ +1.000"
    page.get_by_label(re.compile("^with")).select_option(label="first")
    page.get_by_role("button", name="Only changed").click()
    assert keys(page) == [3, 0, 1, 4]
    expect(page).to_have_url(re.compile("first=1&second=0"))


@pytest.mark.parametrize("first", ["length", "9", "-1", "0.5", "at"])
def test_an_answer_that_is_none_is_not_compared(page: Page, tmp_path: Path, first: str):
    open_report(page, tmp_path, comparison(), f"samples&first={first}")
    expect(page.get_by_label("Compare")).to_have_value("0")


def test_sides_of_a_pair_have_no_colours_of_runs(page: Page, tmp_path: Path):
    data = comparison()
    pairs = [sample | {"answers": sample["answers"][:2]} for sample in data["samples"]]
    open_report(page, tmp_path, data | {"answers": ["rejected", "chosen"], "samples": pairs}, "samples")
    names = page.locator(".card").first.locator(".answer-name")
    expect(names.nth(0)).to_have_class(re.compile("ink-first"))
    expect(names.nth(1)).to_have_class(re.compile("ink-last"))
    (tmp_path / "runs").mkdir()
    open_report(page, tmp_path / "runs", comparison(), "samples")
    expect(page.locator(".card").first.locator(".answer-name").nth(2)).to_have_class(re.compile("ink-2"))


def test_a_picture_is_enlarged_by_click_and_by_key_and_closed_again(page: Page, tmp_path: Path):
    two = sample(0, pictures=[picture("red"), picture("green")])
    open_report(page, tmp_path, page_data(samples=[two]))
    dialog = page.get_by_role("dialog")
    page.get_by_role("button", name="Enlarge Picture 2 of validation 0").click()
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("img", name="Picture 2 of validation 0")).to_have_attribute(
        "src", picture("green")
    )
    assert dialog.locator("dt, dd").all_inner_texts() == [
        "before",
        "a red circle number0 .",
        "after",
        "a blue circle number0 .",
    ]
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    thumb = page.get_by_role("button", name="Enlarge Picture 1 of validation 0")
    thumb.focus()
    page.keyboard.press("Enter")
    box = dialog.locator("img").bounding_box()
    assert box is not None
    assert box["width"] > 400
    expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    expect(thumb).to_be_focused()
    thumb.click()
    page.mouse.click(5, 5)
    expect(dialog).to_be_hidden()


def test_a_heat_map_lies_over_the_picture_on_request(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(samples=[sample(0, heat=heat()), sample(1)]))
    button = page.get_by_role("button", name="Heat map")
    expect(button).to_have_count(1)
    button.click()
    cells = page.locator(".thumb rect")
    expect(cells).to_have_count(6)
    # Two rows of three: the strongest patch is the third of the first row.
    assert [cells.nth(2).get_attribute(name) for name in ("x", "y", "fill")] == ["2", "0", "rgb(252,230,100)"]
    assert [cells.nth(3).get_attribute(name) for name in ("x", "y")] == ["0", "1"]
    opacity = [float(cell.get_attribute("fill-opacity") or "nan") for cell in cells.all()]
    assert opacity == [0.1, 0.4, 0.7, 0.25, 0.1, 0.1]
    expect(page.get_by_text("image 40%, prompt 35%, answer 25%")).to_be_visible()
    page.locator(".thumb").first.click()
    expect(page.locator("dialog rect")).to_have_count(6)
    page.keyboard.press("Escape")
    button.click()
    expect(cells).to_have_count(0)


def test_cards_need_nothing_but_answers(page: Page, tmp_path: Path):
    bare = {"id": 0, "answers": [{"text": ""}, {"text": "b", "ended": False}]}
    open_report(page, tmp_path, {"version": 1, "answers": ["before", "after"], "samples": [bare]})
    assert page.locator(".card h3").inner_text() == "0"
    assert page.locator(".answer-text").all_inner_texts() == ["(empty)", "bcut"]
    assert page.locator(".card button, .card details, .card table, .total").count() == 0
    assert page.get_by_label("Sort by").locator("option").all_inner_texts() == ["as in the data"]
