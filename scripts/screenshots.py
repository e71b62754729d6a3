"""Pictures of the web page for the documentation, in docs/images.

    python scripts/screenshots.py                            a server of its own, with smollm2
    python scripts/screenshots.py dark phone                 some of them
    python scripts/screenshots.py --url http://127.0.0.1:8080

The server's model answers as it does, with default settings; nothing in the pictures is made up. On
a machine that is busy drafts may not pay, so that few tokens are tinted: take them on a quiet one.
It needs a Chromium or Chrome, as the tests of the page do.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 150_000
PATIENCE = 300_000  # milliseconds

# For one conversation of two turns, and for four side by side.
QUESTION = "Name three rivers of Europe, and say one sentence about each."
NEXT = "Now the same of three mountains."
SEVERAL = (
    QUESTION,
    "Write a Python class for a bank account, with methods to deposit and to withdraw.",
    "Write a short list of five fruits, with the colour of each.",
    "Explain to a child why the sky is blue.",
)
SERVE = ("--model", "smollm2", "--port", "0")


@contextmanager
def own_server() -> Iterator[str]:
    """One with a small real model, at a free port; gives its address."""
    command = [sys.executable, "-m", "mlx_spec", "serve", *SERVE]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                return
        sys.exit("the server ended before it listened")
    finally:
        process.terminate()
        process.wait()


def ask(page: Page, prompt: str, place: int = 0) -> None:
    """Write it in a conversation."""
    page.locator(".pane").nth(place).get_by_label("Prompt").fill(prompt)


def run_all(page: Page) -> None:
    """Send what is written, and wait for the figures of all answers."""
    page.keyboard.press("Control+Enter")
    expect(page.locator(".pane[data-busy]").first).to_be_visible()
    expect(page.locator(".pane[data-busy]")).to_have_count(0)


def opened(browser: Browser, url: str, width: int, height: int, **options: object) -> Page:
    """The page in a window of this size, connected."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#connection")).to_have_text("connected")
    hidden = page.locator("#side").is_hidden()
    if hidden:
        page.get_by_role("button", name="Panel").click()
    page.locator("#parameters").get_by_label("Max tokens").fill("110")
    if hidden:
        page.get_by_role("button", name="Close the panel").click()
    return page


def keep(page: Page, name: str) -> None:
    """A picture of what is seen."""
    page.wait_for_timeout(1500)  # figures of the last steps
    path = IMAGES / f"playground-{name}.png"
    page.screenshot(path=path)
    page.context.close()
    if path.stat().st_size >= MOST_BYTES:
        with Image.open(path) as picture:
            few = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
        few.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size:,} bytes")
    assert size < MOST_BYTES, f"{path.name} is too large to keep"


def light(browser: Browser, url: str) -> None:
    """One conversation."""
    page = opened(browser, url, 1280, 800, color_scheme="light")
    for question in (QUESTION, NEXT):
        ask(page, question)
        run_all(page)
    keep(page, "light")


def dark(browser: Browser, url: str) -> None:
    """Several, as one batch."""
    page = opened(browser, url, 1280, 860, color_scheme="dark")
    for number, prompt in enumerate(SEVERAL):
        if number:
            page.get_by_role("button", name="Compare").click()
        ask(page, prompt, number)
    run_all(page)
    keep(page, "dark")


def phone(browser: Browser, url: str) -> None:
    """A narrow one."""
    narrow = {"has_touch": True, "device_scale_factor": 2, "color_scheme": "light"}
    page = opened(browser, url, 360, 780, **narrow)
    ask(page, QUESTION)
    run_all(page)
    keep(page, "phone")


TAKE = {"light": light, "dark": dark, "phone": phone}


def main() -> None:
    """Take all pictures."""
    from tests.page.browser import open_browser

    expect.set_options(timeout=PATIENCE)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["light", "dark", "phone"])
    parser.add_argument("--url", help="of a server that runs; else one is started")
    asked = parser.parse_args()
    url = asked.url
    IMAGES.mkdir(exist_ok=True)
    with open_browser() as browser:
        for name in asked.names:
            # A server that has answered a question before guesses its answer.
            with nullcontext(url) if url else own_server() as address:
                TAKE[name](browser, address)


if __name__ == "__main__":
    main()
