"""What axe-core finds wrong for people who cannot see, or not well: nothing, in both themes."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from mlx_spec.config.speculation import DRAFTERS
from tests.page.server import HOLD, PageServer
from tests.page.visit import Visit

KINDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# A theme is colours and nothing else.
RULES = {
    "light": {"runOnly": KINDS},
    "dark": {"runOnly": {"type": "rule", "values": ["color-contrast"]}},
}
SIZES = {"desk": {"width": 1280, "height": 800}, "phone": {"width": 360, "height": 640}}


def check(page: Page, state: str) -> None:
    """Nothing is wrong now, in either theme."""
    for scheme, rules in RULES.items():
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options=rules).response["violations"]
        nodes = [f"{one['id']} {node['html']}" for one in found for node in one["nodes"]]
        assert nodes == [], f"{state}, {scheme}"


def test_axe_finds_nothing(browser: Browser, server: PageServer) -> None:
    """The page in all its states, in both widths."""
    for size, viewport in SIZES.items():
        server.reset()
        # What fades has neither its first colours nor its last.
        visit = Visit(browser, server.url, viewport=viewport, reduced_motion="reduce")
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
        else:
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
