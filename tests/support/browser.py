"""A real browser for the tests of pages: Chromium, driven by Playwright, that may speak to this machine only."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
TIMEOUT = 60_000  # milliseconds for anything that a test waits for
LOCAL = {"127.0.0.1", "localhost"}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """Return the path of a Chromium, or skip the test."""
    path = os.environ.get("LLADA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: install one, or name it in LLADA_CHROMIUM")
    return path


@contextmanager
def launched() -> Iterator["Browser"]:
    """Launch the browser; skips the test where there is none, or no Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = chromium()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


browser = launched


@contextmanager
def page_in(browser: "Browser", allowed: tuple[str, ...], **options: Any) -> Iterator["Page"]:
    """Open a page in a fresh context, in which no error may occur and no request may go elsewhere.

    Args:
        allowed: beginnings of the addresses that the page may ask for.
        options: of Playwright's context.
    """
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT)
    page, problems = context.new_page(), list[str]()
    page.on("console", lambda message: problems.append(message.text) if is_problem(message) else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((*allowed, "data:")) else problems.append(f"asked {r.url}"))
    page.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
    yield page
    context.close()
    assert problems == []


def is_problem(message: "ConsoleMessage") -> bool:
    """Whether it is an error or warning; the browser itself notes each answer with the status 400."""
    return message.type in ("error", "warning") and "a status of 400" not in message.text


def axe_source() -> str:
    """Return the source of axe-core, or skip the test."""
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("no axe-core: install axe-playwright-python")
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def accessibility_problems(page: "Page") -> list[str]:
    """What axe-core finds on the page, as lines."""
    page.evaluate(axe_source())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]


class Watched:
    """A page whose console, errors and requests are kept."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(TIMEOUT)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.hosts: set[str | None] = set()
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))

    def _hear(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    def check(self) -> None:
        """Nothing was complained of, and no request left this machine."""
        assert self.complaints == []
        assert self.hosts <= LOCAL

    def close(self) -> None:
        self.context.close()


def wait_until(page: Any, expression: str, seconds: float = 60.0) -> None:
    """Wait until an expression of JavaScript is true. Playwright's own wait evaluates it within the page, which a
    content security policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"still not true: {expression}"
        page.wait_for_timeout(20)
