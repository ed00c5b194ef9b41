"""The token view: what colours a token, what its colour means, and its numbers."""

# ruff: noqa: RUF001 - the page sets a minus as a minus, and a missing number as a dash

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.browser.report_support import open_report
from tests.report.page_support import answer, heat, page_data, sample

COLOUR = "element => getComputedStyle(element).backgroundColor"


def opened(page: Page, number: int = 0) -> Locator:
    card = page.locator(".card").nth(number)
    card.locator("summary", has_text="Tokens").click()
    return card.locator(".tokens")


def channels(token: Locator) -> list[float]:
    """Red, green, blue and opacity of what lies behind a token."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", token.evaluate(COLOUR))]
    return [*numbers, 1.0][:4]


def test_tokens_of_every_answer_are_shown_when_asked_for(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    expect(page.locator(".token")).to_have_count(0)
    view = opened(page)
    assert view.locator(".answer-name").all_inner_texts() == ["before", "after"]
    words = [" a", " red", " circle", " number0", " ."]
    assert [token.text_content() for token in view.get_by_role("list").first.locator(".token").all()] == words
    page.locator("summary", has_text="Tokens").first.click()
    expect(page.locator(".token")).to_have_count(0)


def test_a_log_probability_colours_by_how_surprising_a_token_was(page: Page, tmp_path: Path):
    # -0.1, -0.2, ... -0.5: the last one is as surprising as any.
    open_report(page, tmp_path, page_data())
    tokens = opened(page).locator(".token")
    opacity = [channels(tokens.nth(place))[3] for place in range(5)]
    assert opacity == sorted(opacity)
    assert opacity[0] < opacity[4] == 0.6
    expect(page.get_by_role("img", name="Colours from 0 to −0.500 and beyond")).to_be_visible()


def test_values_and_advantages_have_two_colours_around_zero(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    view = opened(page)
    for kind, signs in (("value", [1, 1, 0, -1, -1]), ("advantage", [-1, -1, 0, 1, 1])):
        view.get_by_label("Colour by").select_option(label=kind)
        found = [channels(view.locator(".token").nth(place)) for place in range(5)]
        # Blue outweighs red above zero.
        assert [0 if opacity == 0 else 1 if blue > red else -1 for red, _, blue, opacity in found] == signs
        # 0.5, 0.25, 0, -0.25, -0.5, or the other way round: equal sizes are as strong.
        assert found[0][3] == found[4][3] > found[1][3] == found[3][3]
        expect(page.get_by_role("img", name="Colours from −0.500 over 0 to 0.500 and beyond")).to_be_visible()


def test_colours_of_different_samples_compare(page: Page, tmp_path: Path):
    weak = sample(1)
    for each in weak["answers"]:
        each["values"] = [value / 2 for value in each["values"]]
    open_report(page, tmp_path, page_data(samples=[sample(0), weak]), "samples&tokens=values")
    strong, other = (channels(opened(page, number).locator(".token").first)[3] for number in (0, 1))
    assert strong == 2 * other


def test_importance_has_tokens_of_its_own(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(samples=[sample(0, heat=heat()), sample(1)]))
    view = opened(page)
    view.get_by_label("Colour by").select_option("importance")
    assert view.locator(".answer-name").all_inner_texts() == ["what the completion depends on"]
    tokens = view.locator(".token")
    assert [token.text_content() for token in tokens.all()] == ["Describe", " a", " blue", " circle"]
    assert [round(channels(tokens.nth(place))[3], 2) for place in range(4)] == [0.08, 0.15, 0.6, 0.0]
    # The other sample has no importance and shows what it has.
    assert opened(page, 1).get_by_label("Colour by").input_value() == "logps"


def test_numbers_of_a_token_are_told_on_hover_and_focus(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    row = opened(page).locator(".token-row").first
    told = row.locator(".token-readout")
    # exp(-0.2) = 0.819
    red = "“ red” log-probability −0.200 (p 0.819), value 0.250, advantage −0.250"
    row.locator(".token").nth(1).hover()
    expect(told).to_have_text(red)
    row.locator(".token").first.focus()
    expect(told).to_have_text(re.compile("“ a” log-probability −0.100"))
    page.keyboard.press("ArrowRight")
    expect(told).to_have_text(red)
    expect(row.locator(".token").nth(1)).to_have_accessible_name(
        "red, log-probability −0.200 (p 0.819), value 0.250, advantage −0.250"
    )
    for key, place in (("End", 4), ("ArrowRight", 4), ("ArrowLeft", 3), ("Home", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        expect(row.locator(".token").nth(place)).to_be_focused()
    # One stop of the Tab key in each row.
    page.keyboard.press("Tab")
    expect(page.locator(".token-row").nth(1).locator(".token").first).to_be_focused()


def test_what_colours_is_chosen_once_for_all_samples_and_kept(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    opened(page)
    select = opened(page, 1).get_by_label("Colour by")
    select.focus()
    select.select_option(label="value")
    expect(select).to_be_focused()
    assert [select.input_value() for select in page.get_by_label("Colour by").all()] == ["values", "values"]
    expect(page).to_have_url(re.compile("tokens=values$"))
    page.reload()
    assert opened(page).get_by_label("Colour by").input_value() == "values"


def test_tokens_without_numbers_or_letters_are_still_tokens(page: Page, tmp_path: Path):
    odd = answer(
        "x", 1.0, 1.0, tokens=["", "\n", " x"], logps=[None, float("nan"), -0.5], values=None, advantages=None
    )
    plain = answer("y", 1.0, 1.0, tokens=["y"], logps=None, values=None, advantages=None)
    open_report(page, tmp_path, page_data(samples=[sample(0, answers=[odd, plain])]))
    view = opened(page)
    assert [token.text_content() for token in view.locator(".token").all()] == ["∅", "⏎", " x", "y"]
    assert view.get_by_label("Colour by").locator("option").all_inner_texts() == ["log-probability"]
    view.locator(".token").first.hover()
    expect(view.locator(".token-readout").first).to_have_text("“∅” no numbers")


def test_tokens_that_no_number_belongs_to_have_no_colours_to_choose(page: Page, tmp_path: Path):
    plain = answer("y", 1.0, 1.0, tokens=["y"], logps=None, values=None, advantages=None)
    open_report(page, tmp_path, page_data(samples=[sample(0, answers=[plain, plain])]))
    view = opened(page)
    expect(view.locator(".token")).to_have_count(2)
    expect(view.get_by_label("Colour by")).to_have_count(0)
