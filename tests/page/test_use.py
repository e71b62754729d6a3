"""Who uses the page how: by keyboard, by ear, on a phone, in the dark."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, expect

from tests.page.server import HOLD, PageServer
from tests.page.visit import Visit


def test_all_of_it_by_keyboard(visit: Visit, server: PageServer) -> None:
    keys, page = visit.page.keyboard, visit.page
    expect(visit.prompt()).to_be_focused()  # as the page opens
    server.answers["Hi"] = [("Partly", None), HOLD]
    keys.type("Hi")
    keys.press("Shift+Enter")
    keys.press("Backspace")
    keys.press("Enter")
    expect(visit.text()).to_have_text("Partly")
    keys.press("Escape")
    visit.done()
    keys.press("ArrowUp")  # the last prompt
    expect(visit.prompt()).to_have_value("Hi")
    keys.press("Control+a")
    keys.press("Delete")
    keys.press("Tab")  # to the button, then to the panel
    expect(visit.pane().get_by_role("button", name="Send")).to_be_focused()
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    keys.press("+")
    expect(visit.prompt(2)).to_be_focused()
    keys.type("+p?")  # are signs where text is typed
    expect(visit.prompt(2)).to_have_value("+p?")
    keys.press("Alt+ArrowUp")
    expect(visit.prompt(1)).to_be_focused()
    keys.type("One")
    keys.press("Control+Enter")
    expect(visit.text(1)).to_have_text("You said: One")
    expect(visit.text(2)).to_have_text("You said: +p?")
    page.locator("#theme-button").focus()
    keys.press("?")
    expect(page.locator("#help-dialog")).to_be_visible()
    keys.press("Escape")
    expect(page.locator("#theme-button")).to_be_focused()
    keys.press("p")
    expect(page.locator("#side")).to_be_hidden()
    keys.press("/")
    expect(visit.prompt(1)).to_be_focused()


# Elements that a screen reader could only call "button".
UNNAMED = """() => [...document.querySelectorAll("button, input, textarea, section, svg, dialog")]
    .filter(one => !one.textContent.trim() && !one.labels?.length &&
            !one.getAttribute("aria-label") && !one.getAttribute("aria-labelledby"))
    .map(one => one.outerHTML)"""


def test_who_listens_hears_starts_and_ends_and_no_tokens(visit: Visit, server: PageServer) -> None:
    server.answers["Hi"] = [("Secret", None), (" words", "ngram")]
    heard = """() => { window.heard = []; new MutationObserver(() => window.heard.push(
               document.getElementById("announcer").textContent)).observe(
               document.getElementById("announcer"), {childList: true}) }"""
    visit.page.evaluate(heard)
    visit.ask("Hi")
    expect(visit.page.locator("#announcer")).to_contain_text("Answer 1 is complete: 2 tokens")
    assert 1 <= len(visit.page.evaluate("window.heard")) <= 3
    assert "Secret" not in str(visit.page.evaluate("window.heard"))
    assert visit.pane().locator("[role=log]").get_attribute("aria-live") == "off"
    assert visit.page.evaluate(UNNAMED) == []
    charts = visit.page.locator("#charts svg[role=img]")
    expect(charts).to_have_count(6)
    expect(charts.first).to_have_attribute("aria-label", re.compile("Throughput: 123 tok/s now"))
    expect(visit.page.locator("#charts")).to_contain_text("25 MB of 1 GB")
    expect(visit.page.locator("#facts")).to_contain_text("120 ms, p95 400 ms")


def test_a_phone_scrolls_down_and_never_sideways(browser: Browser, server: PageServer) -> None:
    visit = Visit(browser, server.url, viewport={"width": 360, "height": 640}, has_touch=True)
    server.figures["model"] = "a-publisher/with-a-very-long-model-name-Instruct-4bit-" + "x" * 60
    server.answers["Hi"] = [("Donaudampfschifffahrts" * 20, "ngram"), (" x" * 400, None)]
    for step in ("one", "two", "panel"):
        if step == "two":
            visit.page.get_by_role("button", name="Compare").tap()
        elif step == "panel":
            visit.page.get_by_role("button", name="Panel").tap()
            expect(visit.page.locator("#charts")).to_be_visible()
        else:
            visit.ask("Hi")
            visit.done()
        widths = "[document.documentElement.scrollWidth, innerWidth]"
        wide, inner = visit.page.evaluate(widths)
        assert (wide, inner) == (360, 360), step
        outside = """() => [...document.querySelectorAll("button, textarea, .message, figure")]
            .filter(one => one.offsetParent && one.getBoundingClientRect().right > innerWidth)
            .map(one => one.outerHTML)"""
        assert visit.page.evaluate(outside) == [], step
        sideways = """() => [...document.querySelectorAll(".log, .side")]
            .filter(one => one.scrollWidth > one.clientWidth).length"""
        assert visit.page.evaluate(sideways) == 0, step
    visit.page.keyboard.press("Escape")
    expect(visit.page.locator("#side")).to_be_hidden()
    visit.leave()


PAPER = "() => getComputedStyle(document.body).backgroundColor"


def test_dark_and_light_by_the_system_and_by_a_switch(browser: Browser, server: PageServer) -> None:
    visit = Visit(browser, server.url, color_scheme="dark", reduced_motion="reduce")
    server.answers["Hi"] = [("x", "ngram"), HOLD]
    dark = visit.page.evaluate(PAPER)
    visit.page.emulate_media(color_scheme="light")
    light = visit.page.evaluate(PAPER)
    assert dark != light
    switch = visit.page.locator("#theme-button")
    for name, paper in (("light", light), ("dark", dark)):
        switch.click()
        expect(switch).to_have_text(f"Theme: {name}")
        assert visit.page.evaluate(PAPER) == paper
    visit.page.reload()
    assert visit.page.evaluate(PAPER) == dark
    visit.ask("Hi")
    expect(visit.text()).to_have_text("x")
    moves = "one => getComputedStyle(one.lastChild, '::after').animationName"
    assert visit.text().evaluate(moves) == "none"
    visit.page.emulate_media(reduced_motion="no-preference")
    assert visit.text().evaluate(moves) == "beat"
    visit.leave()
