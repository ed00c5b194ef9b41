"""A real browser for tests of pages; a page that complains, asks or calls out fails its test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 20_000
"""Milliseconds that something may take to appear on a busy machine."""
LOCAL = ("localhost", "127.0.0.1", "::1")


expect.set_options(timeout=PATIENCE)


@dataclass
class Watch:
    """What a page did that a person would not see."""

    complaints: list[str] = field(default_factory=list)
    """Console errors, uncaught errors, dialogs, and requests that would have left this machine."""
    requests: list[str] = field(default_factory=list)
    """Every address that was asked for, but for those of data and of the page's own memory."""

    def attend(self, context: BrowserContext) -> None:
        """Listens to every page of a context, and lets no request out."""
        context.route("**/*", self._let_through)
        context.on("console", lambda message: self._hear(message.type, message.text))
        context.on("weberror", lambda error: self.complaints.append(f"uncaught {error.error}"))
        context.on(
            "dialog", lambda dialog: (self._hear("error", f"dialog {dialog.message}"), dialog.dismiss())
        )

    def take(self, page: Page, count: int) -> list[str]:
        """Waits for so many complaints and takes them away, where a test is about them."""
        for _ in range(PATIENCE // 50):
            if len(self.complaints) >= count:
                break
            page.wait_for_timeout(50)
        taken, self.complaints = self.complaints, []
        return taken

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def _let_through(self, route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("data", "blob"):
            route.continue_()
            return
        self.requests.append(route.request.url)
        if address.scheme == "file" or address.hostname in LOCAL:
            route.continue_()
        else:
            self.complaints.append(f"request {route.request.url}")
            route.abort()


def chromium() -> str:
    """Where the browser is."""
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)]
    path = next((each for each in found if each), None)
    if path is None or not os.access(path, os.X_OK):
        pytest.fail(
            f"no browser: CHROMIUM is {os.environ.get('CHROMIUM')!r} and none of {', '.join(NAMES)} is on "
            "PATH. Run `make browser`, or set CHROMIUM=/path/to/chromium."
        )
    return path


# Of a module, not of the session: while Playwright is started, its event loop counts as running in this
# thread, and no test of another module could call asyncio.run.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium with a new profile."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def watch() -> Iterator[Watch]:
    """What the pages of this test did; complaints that the test does not take away fail it."""
    watched = Watch()
    yield watched
    if watched.complaints:
        pytest.fail("the page complained: " + "; ".join(watched.complaints))


@pytest.fixture
def context(browser: Browser, watch: Watch) -> Iterator[BrowserContext]:
    """A desktop window that keeps nothing of other tests."""
    made = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    made.set_default_timeout(PATIENCE)
    watch.attend(made)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    """A tab of it."""
    return context.new_page()
