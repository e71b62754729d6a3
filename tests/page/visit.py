"""A page that is open in a browser, and short words for what people do there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.page.server import PATIENCE

_patience: list[float] = [PATIENCE]
expect.set_options(timeout=PATIENCE * 1000)

# What Chromium writes to the console of every answer that is no 200, and of a server that is gone.
_EXPECTED = re.compile(r"Failed to load resource")


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """How long is waited for what does not come, for a bug that was planted."""
    _patience.append(seconds)
    expect.set_options(timeout=seconds * 1000)
    try:
        yield
    finally:
        _patience.pop()
        expect.set_options(timeout=_patience[-1] * 1000)


class Visit:
    """A page that is open, what the browser complained of, and what it asked for."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context: BrowserContext = browser.new_context(**options)
        self.context.set_default_timeout(_patience[-1] * 1000)
        self.page: Page = self.context.new_page()
        self.host = urlsplit(url).netloc
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto(url)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and not _EXPECTED.search(message.text):
            self.complaints.append(message.text)

    def leave(self) -> None:
        """No script failed, nothing that the page wanted was refused, and it asked nobody else."""
        self.context.close()
        assert self.complaints == []
        assert {urlsplit(url).netloc for url in self.asked} == {self.host}

    def pane(self, number: int = 1) -> Locator:
        return self.page.locator(".pane").nth(number - 1)

    def prompt(self, number: int = 1) -> Locator:
        return self.pane(number).get_by_label("Prompt")

    def answer(self, number: int = 1) -> Locator:
        """The last answer of a conversation."""
        return self.pane(number).locator(".answer").last

    def text(self, number: int = 1) -> Locator:
        return self.answer(number).locator("> .text")

    def note(self, number: int = 1) -> Locator:
        """What went wrong with it."""
        return self.answer(number).locator(".note")

    def button(self, name: str) -> Locator:
        """One that is there once."""
        return self.page.get_by_role("button", name=name, exact=True)

    def ask(self, text: str, number: int = 1) -> None:
        self.prompt(number).fill(text)
        self.prompt(number).press("Enter")

    def done(self, number: int = 1) -> None:
        """Wait for an answer's end."""
        expect(self.pane(number)).not_to_have_attribute("data-busy", "")

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that the page does not show."""
        for _ in range(round(_patience[-1] * 50)):
            if holds():
                return
            self.page.wait_for_timeout(20)
        pytest.fail("it never came")
