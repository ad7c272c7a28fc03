"""A real browser for the tests of pages, and what all pages must satisfy: no error, no request elsewhere, axe-core."""

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LOCAL = ("127.0.0.1", "localhost")


def chromium() -> str:
    """The path of Chromium; skips the test if there is none, or no Playwright to drive it."""
    pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    path = os.environ.get("LLADA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: install it, or name its path in LLADA_CHROMIUM")
    return path


@contextmanager
def browser() -> Iterator[Any]:
    """A browser of its own, for the time of the block."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield opened
        finally:
            opened.close()


class Watched:
    """A page whose console, errors and requests are kept."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(**context)
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
        assert self.hosts <= set(LOCAL)

    def close(self) -> None:
        self.context.close()


def wait_until(page: Any, expression: str, seconds: float = 8.0) -> None:
    """Wait until an expression of JavaScript is true. Playwright's own wait evaluates it within the page, which a
    content security policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"still not true: {expression}"
        page.wait_for_timeout(20)


def axe_violations(page: Any) -> list[str] | None:
    """What axe-core finds on a page, each with the first place; None if axe-core is not installed
    (axe-playwright-python)."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        return None
    # Evaluated by the browser's debugger, which a content security policy does not hold up.
    page.evaluate((Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0]['failureSummary']}" for each in found]
