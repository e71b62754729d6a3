"""A real browser for the tests of the web page: Debian's Chromium, or what is installed here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
# As root there is no sandbox; containers have a small /dev/shm.
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


def find_browser() -> str | None:
    """The path of a Chromium or Chrome; None where there is none."""
    found = [shutil.which(name) for name in _NAMES]
    return next((path for path in (*found, _MAC) if path and os.path.exists(path)), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless browser; without one the tests are skipped, and in CI they fail."""
    path = find_browser()
    if path is None:
        words = (
            f"no browser found (looked for {', '.join(_NAMES)}): scripts/test installs one in CI"
        )
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(words)
        pytest.skip(words)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()
