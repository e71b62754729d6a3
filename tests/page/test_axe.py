"""What axe-core finds wrong for people who cannot see, or not well: nothing, in both themes."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from mlx_spec.config.speculation import DRAFTERS
from tests.page.server import HOLD, PageServer
from tests.page.visit import Visit

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
SIZES = {"desk": {"width": 1280, "height": 800}, "phone": {"width": 360, "height": 640}}


def check(page: Page, state: str) -> None:
    """Nothing is wrong now."""
    # What fades has neither its first colours nor its last.
    page.wait_for_function("document.getAnimations().every((one) => one.playState !== 'running')")
    found = Axe().run(page, options=RULES).response["violations"]
    assert [f"{state}: {one['id']} {node['html']}" for one in found for node in one["nodes"]] == []


def look(browser: Browser, server: PageServer, scheme: Any) -> None:
    """The page in all its states, in both widths."""
    for size, viewport in SIZES.items():
        server.reset()
        options = {"color_scheme": scheme, "viewport": viewport, "reduced_motion": "reduce"}
        visit = Visit(browser, server.url, **options)
        expect(visit.page.locator("#connection")).to_have_text("connected")
        check(visit.page, f"{size}, empty")
        guessed = [(f" {name}", name) for name in (*DRAFTERS, "another")]
        server.answers["Hi"] = [("Own", None), *guessed, ("\n```py\nx = 1\n```\n", "ngram")]
        server.answers["Wait"] = [("Half", None), HOLD]
        visit.ask("Hi")
        visit.done()
        visit.button("Compare").click()
        visit.ask("Wait", 2)
        expect(visit.text(2)).to_have_text("Half")
        visit.pane(1).get_by_role("button", name="Options").click()
        server.faults.append((400, "This cannot be.", {}))
        visit.ask("No", 1)
        expect(visit.note(1)).to_have_text("This cannot be.")
        check(visit.page, f"{size}, answers")
        if size == "phone":
            visit.button("Panel").click()
            check(visit.page, f"{size}, panel")
            visit.page.keyboard.press("Escape")
        visit.page.locator("#theme-button").focus()
        visit.page.keyboard.press("?")
        check(visit.page, f"{size}, shortcuts")
        visit.page.keyboard.press("Escape")
        server.figures["draining"] = True
        expect(visit.page.locator("#banner")).to_be_visible()
        check(visit.page, f"{size}, trouble")
        server.key = "sesame"
        expect(visit.page.locator("#key-dialog")).to_be_visible()
        check(visit.page, f"{size}, key")
        server.gate.set()
        visit.leave()


def test_axe_finds_nothing_in_the_light(browser: Browser, server: PageServer) -> None:
    look(browser, server, "light")


def test_axe_finds_nothing_in_the_dark(browser: Browser, server: PageServer) -> None:
    look(browser, server, "dark")
