"""Bugs in the page's files, planted on their way to a browser, and whether a test sees them."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Route
from playwright.sync_api import Error as BrowserError

from mlx_spec.server.routes.page import PAGE_HEADERS, read_page
from tests.page.visit import Visit, patience

PAGE = read_page()
RED = (AssertionError, LookupError, BrowserError, pytest.fail.Exception)
# Seconds for what a bug keeps away. On a busy machine other things are late, too: then longer.
PATIENCES = (0.7, 3.0, 15.0, 60.0)


@dataclass(frozen=True)
class Bug:
    """A bug, and where it shows.

    Attributes:
        name: what is wrong.
        file: of the page.
        right: a text that the file has once.
        wrong: what stands there instead.
        test: which must see it.
        where: the line of the test that does, or a piece of it.
        policy: False takes the content security policy away, too.
        slow: its test waits for something for longer than others do.
    """

    name: str
    file: str
    right: str
    wrong: str
    test: Callable[..., None]
    where: str
    policy: bool = True
    slow: bool = False

    def text(self) -> str:
        """The file with it."""
        text = PAGE[self.file].content.decode()
        assert text.count(self.right) == 1, f"{self.file} has changed: {self.right}"
        return text.replace(self.right, self.wrong)


class PlantedBrowser:
    """A browser that gets the page with a bug."""

    def __init__(self, browser: Browser, bug: Bug) -> None:
        self._browser = browser
        self._bug = bug
        self._headers = dict(PAGE_HEADERS)
        if not bug.policy:
            self._headers.pop("Content-Security-Policy")

    def new_context(self, **options: Any) -> BrowserContext:
        context = self._browser.new_context(**options)
        if self._bug.file != "index.html":
            context.route(f"**/page/{self._bug.file}", self._answer)
        if self._bug.file == "index.html" or not self._bug.policy:
            context.route(lambda url: url.endswith("/"), self._index)
        return context

    def _answer(self, route: Route) -> None:
        kind = PAGE[self._bug.file].type
        route.fulfill(body=self._bug.text(), content_type=kind, headers=self._headers)

    def _index(self, route: Route) -> None:
        index = PAGE["index.html"]
        body = self._bug.text() if self._bug.file == "index.html" else index.content.decode()
        route.fulfill(body=body, content_type=index.type, headers=self._headers)


def lines(test: Callable[..., None], trace: TracebackType | None) -> str:
    """Of the test's file the lines that were at work when it ended."""
    file = inspect.getsourcefile(test)
    at = (frame for frame in traceback.extract_tb(trace) if frame.filename == file)
    found = []
    for frame in at:
        first, last = frame.lineno or 0, frame.end_lineno or frame.lineno or 0
        found += [linecache.getline(frame.filename, line) for line in range(first, last + 1)]
    return "".join(found)


def run(bug: Bug, opened: Callable[[PlantedBrowser], Visit], browser: Browser, **given: Any) -> str:
    """Its test, with it; the lines where it was red, or nothing."""
    planted = PlantedBrowser(browser, bug)
    wanted = inspect.signature(bug.test).parameters
    visit = None
    try:
        if "visit" in wanted:
            given["visit"] = visit = opened(planted)
        given["browser"] = planted
        bug.test(**{name: given[name] for name in wanted})
        if visit is not None:
            visit.leave()
    except RED as error:
        return lines(bug.test, error.__traceback__) or "the end"
    finally:
        for context in browser.contexts:
            context.close()
    return ""


def check(attempt: Callable[[], str], bug: Bug) -> None:
    """Red, and where it should be."""
    for seconds in PATIENCES[bug.slow :]:
        with patience(seconds):
            seen = attempt()
        assert seen, f"nobody saw it: {bug.name}"
        if bug.where in seen:
            return
    pytest.fail(f"{bug.name}: seen elsewhere, at {seen}")
