"""The report as a page: sections, themes, narrow windows, paper, no script, and nothing to show."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Watch
from tests.browser.report_support import keys, open_report
from tests.report.page_support import LONG_WORD, chart, comparison, heat, page_data, run, sample

BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(248, 248, 246)", "rgb(19, 21, 25)"
NAMED = ("button", "input", "select", "summary", "[role=slider]", "[role=region]", "[role=list]", "dialog")


def test_a_report_is_one_file_that_asks_for_nothing_else(page: Page, watch: Watch, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    expect(page.locator("h1")).to_have_text("quickstart")
    page.wait_for_load_state("networkidle")
    assert watch.requests == [(tmp_path / "report.html").as_uri()]
    shown = "[...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    assert page.evaluate(shown)


def test_a_link_leads_to_its_section_and_keeps_the_view(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(), "samples&sort=fall%3Areward")
    for section in ("Overview", "Curves", "Samples", "Figures", "Settings"):
        page.get_by_role("link", name=section, exact=True).click()
        expect(page).to_have_url(re.compile(rf"#{section.lower()}&sort=fall%3Areward$"))
        expect(page.get_by_role("heading", name=section, exact=True)).to_be_in_viewport()
        assert page.evaluate("document.activeElement.id") == section.lower()


def test_the_section_that_is_read_is_marked_in_the_navigation(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    marked = page.locator("nav.bar a[aria-current]")
    expect(marked).to_have_text("Overview")
    page.evaluate("document.getElementById('samples').scrollIntoView({behavior: 'instant'})")
    expect(marked).to_have_text("Samples")
    # The last section ends before its heading reaches the top of a high window.
    page.set_viewport_size({"width": 1280, "height": 1500})
    page.evaluate("scrollTo({top: document.body.scrollHeight, behavior: 'instant'})")
    expect(marked).to_have_text("Settings")


def test_a_copied_address_opens_at_its_section(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data(), "settings")
    expect(page.get_by_role("heading", name="Settings")).to_be_in_viewport()
    page.evaluate("location.hash = '#curves&smooth=0.5'")
    expect(page.get_by_role("heading", name="Curves")).to_be_in_viewport()


def test_an_address_of_no_section_is_passed_over(page: Page, tmp_path: Path):
    open_report(
        page,
        tmp_path,
        page_data(),
        "nowhere&sort=nothing%3Aat%20all&in.group=unheard&first=9&smooth=x&went=x",
    )
    assert keys(page) == []  # no row is of that group, and the control can be set back
    page.get_by_role("button", name="Reset").click()
    assert keys(page) == [0, 1, 2, 3, 4, 5]


def test_the_first_stop_of_the_tab_key_skips_the_navigation(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the report")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_the_theme_goes_round_and_is_kept(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    button = page.get_by_role("button", name="Theme")
    for theme, colour in (("auto", LIGHT), ("light", LIGHT), ("dark", DARK)):
        expect(button).to_have_text(f"Theme: {theme}")
        assert page.evaluate(BACKGROUND) == colour
        button.click()
    expect(button).to_have_text("Theme: auto")
    button.click()
    button.click()
    for _ in range(20):  # Chromium stores by another process, which a busy machine makes late
        page.reload()
        if button.text_content() == "Theme: dark":
            break
        page.wait_for_timeout(100)
    expect(button).to_have_text("Theme: dark")
    assert page.evaluate(BACKGROUND) == DARK


def test_a_report_is_dark_where_the_system_is_unless_light_was_chosen(page: Page, tmp_path: Path):
    page.emulate_media(color_scheme="dark")
    open_report(page, tmp_path, page_data())
    assert page.evaluate(BACKGROUND) == DARK
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(BACKGROUND) == LIGHT


def test_a_narrow_window_scrolls_tables_and_never_the_page(page: Page, tmp_path: Path):
    page.set_viewport_size({"width": 360, "height": 740})
    long = sample(
        0,
        key=LONG_WORD,
        prompt=LONG_WORD,
        references=[LONG_WORD],
        columns={LONG_WORD: LONG_WORD},
        heat=heat(),
    )
    for answer in long["answers"]:
        answer["text"], answer["tokens"], answer["rewards"] = LONG_WORD, [LONG_WORD] * 5, {LONG_WORD: 0.1}
    data = page_data(
        title=LONG_WORD,
        subtitle=LONG_WORD,
        samples=[long | {"diff": [["-", LONG_WORD], ["+", LONG_WORD]]}],
        columns=[LONG_WORD],
        charts=[chart(LONG_WORD, series=[chart()["series"][0] | {"name": LONG_WORD}] * 2)],
        runs=[
            run(
                LONG_WORD, warnings=[LONG_WORD], config={LONG_WORD: LONG_WORD}, facts=[[LONG_WORD, LONG_WORD]]
            )
        ],
        notes=[LONG_WORD],
    )
    open_report(page, tmp_path, data)
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_role("button", name="Heat map").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.get_by_role("button", name="Theme")).to_be_in_viewport()
    table = page.get_by_role("region", name="Before and after")
    assert table.evaluate("element => element.scrollWidth > element.clientWidth")


def test_headings_go_down_one_level_at_a_time(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    levels = [
        int(tag[1])
        for tag in page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => e.tagName)")
    ]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(level - before <= 1 for before, level in itertools.pairwise(levels))


def test_every_control_has_a_name(page: Page, tmp_path: Path):
    open_report(page, tmp_path, comparison())
    for control in page.locator(", ".join(f"{each}:visible" for each in NAMED)).all():
        expect(control).to_have_accessible_name(re.compile(r"\S"))


def test_a_measure_of_a_table_leads_to_where_it_fell_most(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    page.get_by_role("button", name="bleu", exact=True).click()
    # bleu falls where the reward rises: by 0.253 in sample 3, by 0.25 in 0.
    assert keys(page)[:2] == [3, 0]
    expect(page).to_have_url(re.compile("#samples&sort=fall%3Arewards%2Fbleu$"))
    expect(page.get_by_role("heading", name="Samples")).to_be_in_viewport()
    # Of tokens no sample has a number of its own.
    assert page.get_by_role("rowheader", name="tokens").get_by_role("button").count() == 0


def test_settings_are_found_by_name_and_by_value(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    rows, found = page.locator("#config tbody tr:visible"), page.locator("#config-count")
    expect(found).to_have_text("4 of 4 settings")
    for words, names in (("LEARNING", ["learning_rate"]), ("length", ["reward_funcs"]), ("nothing", [])):
        page.get_by_label("Search").last.fill(words)
        expect(rows.locator("th")).to_have_text(names)
        expect(found).to_have_text(f"{len(names)} of 4 settings")


def test_settings_of_several_runs_stand_side_by_side(page: Page, tmp_path: Path):
    open_report(page, tmp_path, comparison())
    expect(page.locator("#config thead th")).to_have_text(["name", "first", "second", "third"])
    page.get_by_label("Only what differs").check()
    expect(page.locator("#config tbody tr:visible")).to_have_text(["seed012"])
    page.get_by_label("Only what differs").uncheck()
    expect(page.locator("#config tbody tr:visible")).to_have_count(2)


def test_a_report_of_nothing_says_so(page: Page, tmp_path: Path):
    open_report(page, tmp_path, {"version": 1})
    expect(page.get_by_text("This run left neither scores nor curves nor samples.")).to_be_visible()
    expect(page.locator("nav.bar a")).to_have_text(["Overview"])


def test_a_report_can_be_read_without_its_script(browser: Browser, watch: Watch, tmp_path: Path):
    context = browser.new_context(java_script_enabled=False)
    watch.attend(context)
    page = context.new_page()
    open_report(page, tmp_path, page_data())
    expect(page.get_by_role("row", name="total reward")).to_be_visible()
    for stand_in in page.get_by_text("drawn by the script of this page").all():
        expect(stand_in).to_be_visible()
    expect(page.get_by_text("drawn by the script of this page")).to_have_count(2)
    assert page.get_by_role("button").count() == 0
    context.close()


def test_paper_gets_the_cards_without_the_controls(page: Page, tmp_path: Path):
    open_report(page, tmp_path, page_data())
    while "dark" not in page.get_by_role("button", name="Theme").inner_text():
        page.get_by_role("button", name="Theme").click()
    page.emulate_media(media="print", color_scheme="dark")
    expect(page.locator(".card").first).to_be_visible()
    for hidden in ("nav.bar", ".gallery-controls", "#curves .controls", "#config-controls"):
        expect(page.locator(hidden)).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(28, 33, 39)"
