"""Answers in the page: streams, tints, turns, parameters, several side by side."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.page.server import HOLD, PageServer
from tests.page.visit import Visit


def test_an_answer_streams_with_its_guessed_tokens_tinted(visit: Visit, server: PageServer) -> None:
    server.answers["Hi"] = [("One", None), (" two", "ngram"), (" three", "head"), HOLD, (".", None)]
    visit.ask("Hi")
    expect(visit.text()).to_have_text("One two three")  # before its end
    expect(visit.answer()).to_have_attribute("aria-busy", "true")
    tinted = visit.text().locator(".draft")
    expect(tinted).to_have_text([" two", " three"])
    colours = tinted.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    assert len({*colours, "rgba(0, 0, 0, 0)"}) == 3
    legend = visit.page.locator("#legend li")
    expect(legend.filter(has_text="ngram")).to_contain_text("61%")
    expect(legend.filter(has_text="head")).to_be_visible()  # the figures do not know it yet
    swatch = legend.filter(has_text="ngram").locator(".draft")
    assert swatch.evaluate("one => getComputedStyle(one).backgroundColor") == colours[0]
    server.gate.set()
    visit.done()
    expect(visit.text()).to_have_text("One two three.")
    figures = visit.answer().locator(".figures")
    expect(figures).to_contain_text("4 tokens")
    expect(figures).to_contain_text("50% from drafts (ngram 1, head 1)")
    expect(figures).to_contain_text("50% of guesses accepted")
    visit.page.get_by_label("Tint drafts").uncheck()
    plain = "all => all.map(one => getComputedStyle(one).backgroundColor)"
    assert set(tinted.evaluate_all(plain)) == {"rgba(0, 0, 0, 0)"}


def test_lines_between_fences_are_code(visit: Visit, server: PageServer) -> None:
    """Wherever tokens end; what looks like the beginning of a fence and is none stays prose."""
    said = ["So:\n", "``", "`py", "\na `b`", " = 1\n``", "`\nThen `` and ```.\n", "`x", "` ``"]
    server.answers["Hi"] = [(text, "ngram" if n % 2 else None) for n, text in enumerate(said)]
    visit.ask("Hi")
    visit.done()
    assert visit.text().text_content() == "".join(said)
    blocks = visit.text().locator("> div")
    kinds = [block.get_attribute("class") for block in blocks.all()]
    assert kinds == ["prose", "code", "prose"]
    assert blocks.nth(1).text_content() == "```py\na `b` = 1\n```\n"
    assert visit.text().locator(".draft").count() > 3


def test_the_end_stays_in_sight_unless_the_reader_goes_back(
    visit: Visit, server: PageServer
) -> None:
    lines = [(f"line {n}\n", None) for n in range(200)]
    server.answers["Long"] = [*lines, HOLD, *lines]
    visit.ask("Long")
    expect(visit.text()).to_contain_text("line 199")
    below = "one => one.scrollHeight - one.scrollTop - one.clientHeight"
    log = visit.pane().locator(".log")
    assert log.evaluate(below) < 5
    log.hover()
    visit.page.mouse.wheel(0, -400)
    visit.until(lambda: log.evaluate(below) > 300)
    server.gate.set()
    visit.done()
    assert log.evaluate(below) > 2000


def test_a_conversation_has_turns_and_parameters(visit: Visit, server: PageServer) -> None:
    form = visit.page.locator("#parameters")
    form.get_by_label("System prompt").fill("Be brief.")
    for label, value in {"Temperature": "0.7", "Max tokens": "50", "Top-k": "40"}.items():
        form.get_by_label(label).fill(value)
    visit.ask("First")
    visit.done()
    visit.ask("Second")
    visit.done()
    body = server.bodies[-1]
    assert [one["role"] for one in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][2]["content"] == "You said: First"
    assert (body["temperature"], body["max_tokens"], body["top_k"]) == (0.7, 50, 40)
    assert not {"top_p", "min_p", "seed"} & body.keys()  # empty: the server's own
    assert (body["model"], body["mlx_spec"]) == ("pocket-1B", {"drafts": True})
    visit.page.reload()
    expect(form.get_by_label("Temperature")).to_have_value("0.7")
    form.get_by_label("Temperature").fill("-1")
    visit.ask("Third")
    expect(form.get_by_label("Temperature")).to_have_attribute("aria-invalid", "true")
    assert len(server.bodies) == 2
    visit.page.get_by_role("button", name="Reset").click()
    visit.ask("Third")
    visit.done()
    assert len(server.bodies) == 3
    assert "temperature" not in server.bodies[-1]


def test_answers_can_be_edited_repeated_and_copied(visit: Visit, server: PageServer) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    raw = "<b>\x1b[1m</b>"
    server.answers["Say it"] = [(raw, None)]
    visit.ask("First")
    visit.done()
    visit.ask("Say it")
    visit.done()
    visit.answer().get_by_role("button", name="Copy").click()
    expect(visit.answer().get_by_role("button", name="Copied")).to_be_visible()
    assert visit.page.evaluate("navigator.clipboard.readText()") == raw  # as the model said it
    visit.answer().get_by_role("button", name="Again").click()
    visit.done()
    assert server.bodies[-1]["messages"] == server.bodies[-2]["messages"]
    visit.page.get_by_role("button", name="Copy as curl").click()
    curl = visit.page.evaluate("navigator.clipboard.readText()")
    assert f"{server.url}v1/chat/completions" in curl
    visit.pane().locator(".question").first.get_by_role("button", name="Edit").click()
    expect(visit.prompt()).to_have_value("First")
    expect(visit.pane().locator(".message")).to_have_count(0)
    visit.ask("Other")
    visit.done()
    assert [one["content"] for one in server.bodies[-1]["messages"]] == ["Other"]


def test_stop_ends_the_request_and_keeps_what_there_is(visit: Visit, server: PageServer) -> None:
    server.answers["Hi"] = [("Partly", None), HOLD, (" more", None)]
    visit.ask("Hi")
    expect(visit.text()).to_have_text("Partly")
    assert server.open == 1
    visit.pane().get_by_role("button", name="Stop").click()
    visit.done()
    visit.until(lambda: server.open == 0)  # while the gate is closed: it was cancelled
    expect(visit.answer().locator(".figures")).to_contain_text("stopped")
    visit.ask("Next")
    visit.done()
    assert server.bodies[-1]["messages"][1] == {"role": "assistant", "content": "Partly"}


def test_six_conversations_run_side_by_side_and_figures_go_on(
    visit: Visit, server: PageServer
) -> None:
    """Six streams are all that a browser opens to a server; the figures must not wait for them."""
    for _ in range(5):
        visit.page.get_by_role("button", name="Compare").click()
    expect(visit.page.get_by_role("button", name="Compare")).to_be_disabled()
    for number in range(1, 7):
        server.answers[f"Prompt {number}"] = [(f"Answer {number}", "model"), HOLD, ("!", None)]
        visit.prompt(number).fill(f"Prompt {number}")
    visit.page.get_by_role("button", name="Run all").click()
    for number in range(1, 7):
        expect(visit.text(number)).to_have_text(f"Answer {number}")
    assert server.open == 6
    asked = server.asked
    visit.until(lambda: server.asked >= asked + 2)
    visit.pane(3).get_by_role("button", name="Stop").click()
    visit.done(3)
    visit.until(lambda: server.open == 5)
    server.gate.set()
    for number in (1, 2, 4, 5, 6):
        expect(visit.text(number)).to_have_text(f"Answer {number}!")
    expect(visit.text(3)).to_have_text("Answer 3")


def test_one_prompt_for_all_with_own_options(visit: Visit, server: PageServer) -> None:
    visit.page.get_by_role("button", name="Compare").click()
    visit.page.get_by_label("One prompt for all").check()
    visit.pane(2).get_by_role("button", name="Options").click()
    visit.pane(2).get_by_label("Temperature").fill("1.5")
    visit.pane(2).get_by_label("Most guesses").fill("0")
    server.answers["Both"] = [("Yes", None), HOLD]
    shared = visit.page.get_by_label("Prompt for all conversations")
    shared.fill("Both")
    shared.press("Enter")
    expect(visit.text(1)).to_have_text("Yes")
    expect(visit.text(2)).to_have_text("Yes")
    own = {(body.get("temperature"), body.get("num_draft_tokens")) for body in server.bodies}
    assert own == {(None, None), (1.5, 0)}
    visit.pane(2).locator(".log").press("Escape")  # ends that one alone
    visit.done(2)
    expect(visit.pane(1)).to_have_attribute("data-busy", "")
    visit.page.get_by_role("button", name="Stop all").click()
    visit.done(1)
    expect(visit.answer(2).locator(".figures")).to_contain_text("the same text as in 1")
    visit.pane(1).get_by_role("button", name="Close").click()
    expect(visit.page.locator(".pane")).to_have_count(1)
    expect(visit.prompt()).to_be_focused()
