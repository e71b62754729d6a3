"""The page at a real server with a toy model: drafts that were drafted, rows that get free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from mlx_spec.server.options import ServerOptions
from tests.page.visit import Visit
from tests.servers import CHAT, Live, running_server, toy

KEY = "a-key-of-tests"
LONG = 16384  # tokens; nobody waits for the end of such a text


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    options = ServerOptions(port=0, api_key=(KEY,))
    with running_server(options, target=toy(LONG), batch_size=6, draft=toy(LONG)) as live:
        yield live


@pytest.fixture
def visit(browser: Browser, live: Live) -> Iterator[Visit]:
    """The page of it."""
    visit = with_key(Visit(browser, live.url))
    yield visit
    visit.leave()


def with_key(visit: Visit) -> Visit:
    """The page, with the key given as people give it."""
    dialog = visit.page.locator("#key-dialog")
    dialog.get_by_label("Key").fill(KEY)
    dialog.get_by_role("button", name="Use it").click()
    expect(visit.page.locator("#connection")).to_have_text("connected")
    return visit


def figures(live: Live) -> Any:
    with live.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        return client.get("/v1/stats").json()


def answer(live: Live, prompt: str, tokens: int) -> str:
    """What the API says, without a page."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    with live.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        text = client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def test_guessed_tokens_are_tinted_and_the_text_is_the_model_s(visit: Visit, live: Live) -> None:
    visit.page.locator("#parameters").get_by_label("Max tokens").fill("60")
    visit.ask("def read_")
    visit.done()
    tinted = visit.text().locator(".draft[data-drafter=model]")
    expect(tinted).not_to_have_count(0)
    accepted = figures(live)["drafters"]["model"]["accepted"]
    assert 0 < tinted.count() <= accepted  # a token may be half a character, and have no text yet
    expect(visit.page.locator("#legend")).to_contain_text("model")
    expect(visit.answer().locator(".figures")).to_contain_text("60 tokens")
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.answer().get_by_role("button", name="Copy").click()
    expect(visit.answer().get_by_role("button", name="Copied")).to_be_visible()
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied == answer(live, "def read_", 60)


def test_six_run_as_one_batch_and_stop_frees_their_rows(visit: Visit, live: Live) -> None:
    visit.page.locator("#parameters").get_by_label("Max tokens").fill(str(LONG // 2))
    for number in range(1, 7):
        if number > 1:
            visit.button("Compare").click()
        visit.prompt(number).fill(f"def read_{number}")
    visit.button("Run all").click()
    for number in range(1, 7):
        expect(visit.text(number)).not_to_be_empty()
    visit.button("Stop all").click()
    for number in range(1, 7):
        visit.done(number)
        expect(visit.answer(number).locator(".figures")).to_contain_text("stopped")
    visit.until(lambda: figures(live)["rows"]["running"] == 0)
    assert figures(live)["happening"]["most_rows"] > 1
    expect(visit.page.locator("#connection")).to_have_text("connected")
