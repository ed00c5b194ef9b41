"""Opening a report in the browser, and what several tests read off it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from mmft.report.page import render_page


def open_report(page: Page, folder: Path, data: Mapping[str, Any], view: str = "") -> None:
    """Writes the report and opens it as a file; `view` is what stands behind the "#"."""
    path = folder / "report.html"
    path.write_text(render_page(data), encoding="utf-8")
    page.goto(f"{path.as_uri()}{view and f'#{view}'}")


def keys(page: Page) -> list[int]:
    """The numbers of the samples whose cards are shown, in order."""
    return [int(text.split()[-1]) for text in page.locator(".card h3").all_inner_texts()]


def count(page: Page) -> str:
    return page.locator(".count").inner_text()
