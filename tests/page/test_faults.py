"""What may go wrong: hostile texts, full servers, cut connections, missing keys."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.page.server import CUT, END, HOLD, PageServer
from tests.page.visit import Visit

HOSTILE = [
    "<script>window.ran = 1</script>",
    '<img src=x onerror="window.ran = 2">',
    "<svg onload='window.ran = 3'>",
    "</div><a href='javascript:window.ran=4'>x</a>",
    "\x00\x07\x1b[31m\x9b\u202eesrever\u2066",
]


def test_what_a_model_or_server_says_is_text(visit: Visit, server: PageServer) -> None:
    server.figures["model"] = HOSTILE[0]
    server.figures["drafters"] = {
        HOSTILE[1]: {"drafted": 2, "accepted": 1, "acceptance_rate": 0.5},
        "constructor": {"drafted": 2, "accepted": 1, "acceptance_rate": 0.5},
    }
    visit.page.reload()
    server.answers["Hi"] = [(text, drafter) for text in HOSTILE for drafter in (None, HOSTILE[1])]
    visit.ask("Hi")
    visit.done()
    shown = visit.text().text_content() or ""
    for text in HOSTILE[:4]:
        assert shown.count(text) == 2
    assert "\u2400\u2407\u241b[31m\u27e8U+009B\u27e9\u27e8U+202E\u27e9esrever" in shown
    assert visit.text().locator("*:not(span.draft, div.prose)").count() == 0
    visit.ask(HOSTILE[1])  # what a person writes, too
    visit.done()
    expect(visit.pane().locator(".question .text").last).to_have_text(HOSTILE[1])
    server.faults.append((400, HOSTILE[1], {}))
    visit.ask("Fault")
    visit.done()
    expect(visit.note()).to_have_text(HOSTILE[1])
    expect(visit.page.locator("#model")).to_have_text(HOSTILE[0])
    expect(visit.page.locator("#legend li").first).to_contain_text(HOSTILE[1])
    expect(visit.page.locator("body")).to_be_visible()
    assert visit.page.evaluate("window.ran") is None
    assert visit.page.locator("img, script, a, svg[onload]").count() == 4  # the page's own


def test_the_browser_would_run_nothing_else(visit: Visit) -> None:
    """The policy holds even if a text became markup somewhere."""
    for work in (
        "text => document.body.innerHTML = text",
        "text => document.body.setAttribute('onclick', text)",
        "text => document.write(text)",
        "text => document.createElement('script').textContent = text",
    ):
        refused = (
            f"text => {{ try {{ ({work})(text); return 'taken' }} catch (e) {{ return e.name }} }}"
        )
        assert visit.page.evaluate(refused, HOSTILE[1]) == "TypeError", work
    assert visit.page.evaluate("window.ran") is None
    assert visit.complaints  # of the browser, about each
    visit.complaints.clear()


def test_a_full_server_is_asked_again_and_other_faults_are_said(
    visit: Visit, server: PageServer
) -> None:
    server.faults.append((429, "64 requests wait, 64 may", {"Retry-After": "1"}))
    visit.ask("Hi")
    note = visit.note()
    expect(note).to_contain_text("The server is full: 64 requests wait, 64 may Trying again in 1 s")
    visit.done()
    expect(visit.text()).to_have_text("You said: Hi")
    expect(note).to_be_hidden()
    server.faults.append((429, "", {"Retry-After": "600"}))
    visit.ask("Wait")
    expect(note).to_contain_text("Trying again in")
    visit.page.keyboard.press("Escape")  # nobody has to wait for it
    visit.done()
    server.faults.append((503, "it shuts down", {}))
    visit.ask("Late")
    visit.done()
    expect(note).to_have_text("The server takes no requests now: it shuts down")
    server.answers["Midway"] = [("Half", None), "out of memory", ("never", None)]
    visit.ask("Midway")
    visit.done()
    expect(note).to_contain_text("out of memory The answer ends here")
    server.answers["End"] = [("Half", None), END]
    visit.ask("End")
    visit.done()
    expect(note).to_contain_text("connection to the server was lost")  # without a last word
    server.answers["Cut"] = [("Half", None), HOLD, CUT]
    visit.ask("Cut")
    expect(visit.text()).to_have_text("Half")
    server.gate.set()
    visit.done()
    expect(note).to_contain_text("connection to the server was lost")
    expect(visit.text()).to_have_text("Half")
    server.answers["Cut"] = [("Whole", None)]
    visit.answer().get_by_role("button", name="Again").click()
    visit.done()
    expect(visit.text()).to_have_text("Whole")


def test_a_server_that_restarts_is_found_again(visit: Visit, server: PageServer) -> None:
    server.answers["Hi"] = [("Half", None), HOLD]
    banner, said = visit.page.locator("#banner"), visit.page.locator("#announcer")
    expect(visit.page.locator("#connection")).to_have_text("connected")
    visit.ask("Hi")
    expect(visit.text()).to_have_text("Half")
    server.answers["Hi"] = [CUT]
    server.stop()
    expect(banner).to_contain_text("The server is gone")
    visit.done()
    visit.ask("Are you there?")
    visit.done()
    expect(visit.note()).to_contain_text("connection to the server was lost")
    server.figures["model"] = "another-2B"
    server.start()
    expect(visit.page.locator("#connection")).to_have_text("connected")
    expect(banner).to_be_hidden()
    expect(said).to_contain_text("The server is back")
    expect(visit.page.locator("#model")).to_have_text("another-2B")
    visit.answer().get_by_role("button", name="Again").click()
    visit.done()
    expect(visit.text()).to_have_text("You said: Are you there?")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(visit: Visit, server: PageServer) -> None:
    server.key = "open sesame"
    dialog = visit.page.locator("#key-dialog")
    expect(dialog).to_be_visible()
    expect(visit.page.locator("#connection")).to_have_text("needs a key")
    dialog.get_by_label("Key").fill("wrong")
    dialog.get_by_label("Key").press("Enter")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("button", name="Forget it")).to_be_visible()
    dialog.get_by_label("Key").fill("open sesame")
    dialog.get_by_role("button", name="Use it").click()
    expect(dialog).to_be_hidden()
    expect(visit.page.locator("#connection")).to_have_text("connected")
    visit.ask("Hi")
    visit.done()
    expect(visit.text()).to_have_text("You said: Hi")
    kept = "[JSON.stringify(localStorage), document.cookie, location.href]"
    assert not [text for text in visit.page.evaluate(kept) if "sesame" in text]
    assert "sesame" in visit.page.evaluate("JSON.stringify(sessionStorage)")
    visit.page.reload()
    expect(visit.page.locator("#connection")).to_have_text("connected")
    visit.page.get_by_role("button", name="API key").click()
    dialog.get_by_role("button", name="Forget it").click()
    expect(dialog).to_be_visible()
    assert visit.page.evaluate("sessionStorage.length") == 0
    assert not [url for url in visit.asked if "sesame" in url]
