"""Text that wants to be more than text: every string of the page data comes from models and data."""

# ruff: noqa: RUF001 - the page sets a minus as a minus, and a missing number as a dash

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Watch
from tests.browser.report_support import keys, open_report
from tests.report.page_support import chart, comparison, heat, page_data, run, sample

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "javascript:alert(1)",
    "<!--<script>",
    "]]><style>*{display:none}</style>",
    "{{ 7 * 7 }}{% raw %}${alert(1)}",
    "&lt;b&gt;&amp;",
    "https://evil.example/x.png",
    # Ends a line of script.
    "\u2028alert(1)\u2029",
)
TEXTS = (
    "h1", ".subtitle", ".warnings li", "figure.table th", "#config th", ".about td", ".notes li", ".chart h4",
    ".chart .description", ".card h3", ".prompt", ".answer-text", "ins", ".answer-name", ".parts th", ".chip",
    ".figures h3",
)  # fmt: skip
KEPT = {"src", "pictures", "kind", "tone"}
"""Fields that are no text to be shown."""


def poisoned(value: Any, text: str, name: str = "") -> Any:
    """The data with `text` behind every string of it, keys of columns and settings among them."""
    if name in KEPT:
        return value
    if isinstance(value, str):
        return value + text
    if isinstance(value, dict):
        free = name in ("columns", "config", "versions", "hardware", "rewards", "shares")
        return {key + text if free else key: poisoned(each, text, key) for key, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each, text, name) for each in value]
    return value


def full() -> dict[str, Any]:
    samples = [sample(0, heat=heat()), sample(1)]
    # The kinds of a difference are no text, and are put back.
    return page_data(samples=samples, runs=[run(warnings=["a warning"])], charts=[chart("A"), chart("B")])


def poison(data: dict[str, Any], text: str) -> dict[str, Any]:
    made = poisoned(data, text)
    for clean, dirty in zip(data["samples"], made["samples"], strict=True):
        for before, after in zip(clean["diff"] or [], dirty["diff"] or [], strict=True):
            after[0] = before[0]
    return made


@pytest.mark.parametrize("text", [HOSTILE[0], HOSTILE[1], "".join(HOSTILE)], ids=["script", "image", "all"])
def test_hostile_text_is_shown_as_it_is_and_does_nothing(page: Page, watch: Watch, tmp_path: Path, text: str):
    open_report(page, tmp_path, poison(full(), text))
    shown = text.split("\u2028")[0]
    for place in TEXTS:
        expect(page.locator(place).first).to_contain_text(shown)
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_role("button", name="Heat map").click()
    page.locator(".token").first.hover()
    for kind in page.locator(".tokens select").first.locator("option").all():
        page.locator(".tokens select").first.select_option(kind.get_attribute("value"))
    page.locator(".chart svg").first.focus()
    page.get_by_role("button", name="Table").first.click()
    page.locator(".gallery-controls select").last.select_option(index=1)
    page.get_by_label("Search").first.fill(text)
    expect(page.locator(".count")).to_contain_text(" of 2 samples")
    page.locator(".thumb").first.click()
    expect(page.locator("dialog dd").first).to_contain_text(shown)
    assert page.locator("script").count() == 2
    assert page.locator("style").count() == 1
    assert page.locator("img[onerror], [onload]").count() == 0
    assert watch.requests == [(tmp_path / "report.html").as_uri()]


def test_hostile_names_of_runs_are_text_too(page: Page, watch: Watch, tmp_path: Path):
    open_report(page, tmp_path, poison(comparison(2), HOSTILE[0]))
    expect(page.locator(".legend .key").first).to_contain_text(HOSTILE[0])
    expect(page.locator("#config thead th").nth(1)).to_contain_text(HOSTILE[0])
    page.locator(".chart svg").first.focus()
    expect(page.locator(".readout:visible")).to_contain_text(HOSTILE[0])
    assert page.locator("script").count() == 2


def test_names_that_every_object_of_a_script_has_are_names_like_others(page: Page, tmp_path: Path):
    names = ("__proto__", "constructor", "toString")
    rows = [sample(number, columns=dict.fromkeys(names, f"v{number}")) for number in range(2)]
    for row in rows:
        row["answers"][1]["rewards"] = dict.fromkeys(names, 0.25)
    open_report(page, tmp_path, page_data(samples=rows, columns=[*names, "hasOwnProperty"], measures=[]))
    assert page.locator(".card").first.locator(".parts th").all_inner_texts() == ["bleu", *names]
    page.get_by_role("combobox", name="__proto__", exact=True).select_option("v1")
    assert keys(page) == [1]
    page.get_by_role("combobox", name="hasOwnProperty", exact=True).select_option("–")
    assert keys(page) == [1]
    page.get_by_label("Sort by").select_option("high:__proto__")
    assert page.locator(".card").first.locator(".parts .scores").all_inner_texts()[1:] == ["– → 0.250"] * 3


def test_the_policy_of_the_page_stops_what_would_run(page: Page, watch: Watch, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    page.evaluate(
        """() => {
          const script = document.createElement('script');
          script.textContent = 'document.title = "run"';
          document.body.append(script);
          const image = document.createElement('img');
          image.src = 'https://evil.example/x.png';
          document.body.append(image);
        }"""
    )
    complaints = watch.take(page, 2)
    assert len(complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in complaints)
    assert page.title() == "quickstart"
    assert watch.requests == [(tmp_path / "report.html").as_uri()]


def test_text_from_right_to_left_keeps_to_its_own(page: Page, tmp_path: Path):
    arabic = sample(0, prompt="صف الصورة", diff=None)
    arabic["answers"][1]["text"] = "دائرة حمراء \u202eabc"
    open_report(page, tmp_path, page_data(samples=[arabic]))
    direction = "element => getComputedStyle(element).direction"
    assert page.locator(".prompt").evaluate(direction) == "rtl"
    assert [text.evaluate(direction) for text in page.locator(".answer-text").all()] == ["ltr", "rtl"]
    assert page.locator(".card h3").evaluate(direction) == "ltr"


def test_halves_of_surrogate_pairs_and_nul_do_not_stop_a_page(page: Page, tmp_path: Path):
    odd = "a\ud800b\x00c"
    open_report(page, tmp_path, page_data(title=odd, samples=[sample(0, prompt=odd, diff=None)]))
    expect(page.locator("h1")).to_have_text("a\ufffdb\ufffdc")
    expect(page.locator(".card .prompt")).to_be_visible()
