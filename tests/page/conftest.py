"""One browser and one server for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.page.browser import open_browser
from tests.page.server import PageServer, page_server
from tests.page.visit import Visit


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def one_server() -> Iterator[PageServer]:
    with page_server() as server:
        yield server


@pytest.fixture
def server(one_server: PageServer) -> PageServer:
    """It, as if nothing had been asked yet."""
    one_server.reset()
    return one_server


@pytest.fixture
def visit(browser: Browser, server: PageServer) -> Iterator[Visit]:
    """The page of it."""
    visit = Visit(browser, server.url)
    yield visit
    visit.leave()
