"""The watch over pages: what it hears, what it lets through, and what to do without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Watch, chromium


@pytest.mark.parametrize(
    ("script", "complaints"),
    [
        ("console.error('broken')", ["broken"]),
        ("setTimeout(() => { throw new Error('thrown'); })", ["uncaught thrown"]),
        ("alert('asked')", ["dialog asked"]),
        # The console says that it failed, too.
        (
            "fetch('https://example.org/x').catch(() => 0)",
            ["request https://example.org/x", "Failed to load"],
        ),
    ],
)
def test_what_a_page_should_not_do_is_heard(page: Page, watch: Watch, script: str, complaints: list[str]):
    page.evaluate(f"() => {{ {script}; }}")
    heard = watch.take(page, len(complaints))
    assert len(heard) == len(complaints)
    assert all(said.startswith(expected) for said, expected in zip(heard, complaints, strict=True))


def test_files_and_this_machine_are_let_through(page: Page, watch: Watch, tmp_path: Path):
    address = (tmp_path / "page.html").as_uri()
    (tmp_path / "page.html").write_text("<title>read</title>", encoding="utf-8")
    page.goto(address)
    assert page.title() == "read"
    page.evaluate("fetch('http://127.0.0.1:9/x', {mode: 'no-cors'}).catch(() => 0)")
    # Nobody listens there, and the console says so; the request itself was allowed.
    (said,) = watch.take(page, 1)
    assert said.startswith("Failed to load resource")
    assert watch.requests == [address, "http://127.0.0.1:9/x"]


def test_without_a_browser_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(
        pytest.fail.Exception, match=r"no browser: CHROMIUM is None .* `make browser`, or set"
    ):
        chromium()
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "nowhere"))
    with pytest.raises(pytest.fail.Exception, match=r"no browser: CHROMIUM is '.*nowhere'"):
        chromium()
    (tmp_path / "nowhere").touch(0o755)
    assert chromium() == str(tmp_path / "nowhere")
