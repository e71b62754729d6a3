"""Bugs planted in the page, some for each of its tests: each is red, and where it should be."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import Browser

from mlx_spec.server.options import ServerOptions
from tests.page import test_answers as answers
from tests.page import test_axe as axe
from tests.page import test_charts as charts
from tests.page import test_faults as faults
from tests.page import test_files as files
from tests.page import test_real as real
from tests.page import test_use as use
from tests.page.planted import PAGE, Bug, PlantedBrowser, check, run
from tests.page.server import page_server
from tests.page.visit import Visit
from tests.servers import Live, running_server, toy

TINTED = answers.test_an_answer_streams_with_its_guessed_tokens_tinted
TURNS = answers.test_a_conversation_has_turns_and_parameters
REPEATED = answers.test_answers_can_be_edited_repeated_and_copied
STOP = answers.test_stop_ends_the_request_and_keeps_what_there_is
END = answers.test_the_end_stays_in_sight_unless_the_reader_goes_back
SIX = answers.test_six_conversations_run_side_by_side_and_figures_go_on
ALL = answers.test_one_prompt_for_all_with_own_options
TEXT = faults.test_what_a_model_or_server_says_is_text
FULL = faults.test_a_full_server_is_asked_again_and_other_faults_are_said
BACK = faults.test_a_server_that_restarts_is_found_again
KEY = faults.test_a_key_is_asked_for_and_kept_in_the_tab_alone
KEYS = use.test_all_of_it_by_keyboard
HEARD = use.test_who_listens_hears_starts_and_ends_and_no_tokens
PHONE = use.test_a_phone_scrolls_down_and_never_sideways
THEMES = use.test_dark_and_light_by_the_system_and_by_a_switch
FIGURES = charts.test_charts_follow_the_server_s_figures

BUGS = [
    # Answers.
    Bug("tokens come at the end", "message.js",
        "if (!this.#waiting.length) soon(() => this.#show());", "", TINTED, "# before its end"),
    Bug("all drafters have one colour", "drafters.js", "return KNOWN[name][0];", "return 1;",
        TINTED, "assert len({*colours"),
    Bug("the drafter of the token before", "api.js", "drafter: chunk.mlx_spec?.drafter ?? null,",
        "drafter: [globalThis.d, (globalThis.d = chunk.mlx_spec?.drafter ?? null)][0] ?? null,",
        TINTED, 'to_have_text([" two"'),
    Bug("the legend forgets drafters without figures", "drafters.js",
        "export const seen = (name) => void itemOf(name);", "export const seen = () => {};",
        TINTED, "# the figures do not know it yet"),
    Bug("tints that stay", "drafters.js", 'toggleAttribute("data-plain", !box.checked)',
        'toggleAttribute("data-tint", box.checked)', TINTED, "assert set(tinted"),
    Bug("a fence in pieces is none", "flow.js", "&& begun.length < 3) return;",
        "&& begun.length < 1) return;", answers.test_lines_between_fences_are_code, "assert kinds"),
    Bug("the end is always shown", "pane.js", "if (always || this.#atEnd)", "if (true)",
        END, "log.evaluate(below) >"),
    Bug("the end is never shown", "pane.js", "log.scrollTop = log.scrollHeight;", ";",
        END, "log.evaluate(below) < 5"),
    Bug("no turn but the last", "pane.js", "return kept.map(({ role, content })",
        "return kept.slice(-1).map(({ role, content })", TURNS, '[one["role"] for one'),
    Bug("an empty field is 0", "settings.js", '&& field.value !== "")', ")",
        TURNS, 'assert (body["temp'),
    Bug("no parameter is kept", "settings.js", 'store("settings",', 'void ("settings",',
        TURNS, 'to_have_value("0.7")'),
    Bug("a wrong number is sent", "settings.js",
        "return fields.find((field) => !field.checkValidity()) ?? null;", "return null;",
        TURNS, "assert len(server.bodies) == 2"),
    Bug("what is copied is what is shown", "message.js", "copy(event.target, this.text)",
        "copy(event.target, this.body.textContent)", REPEATED, "# as the model said it"),
    Bug("an answer is repeated with itself", "pane.js",
        "this.#cut(this.#entries.indexOf(entry));\n    this.#run();", "this.#run();",
        REPEATED, 'server.bodies[-1]["messages"] == server.bodies[-2]["messages"]'),
    Bug("stop ends the words, not the request", "api.js", "    signal,\n    credentials",
        "    credentials", STOP, "visit.done()"),
    Bug("a stopped answer is forgotten", "pane.js", "entry.content = answer.text;",
        'entry.content = ending ? "" : answer.text;', STOP, 'assert server.bodies[-1]["messages"]'),
    Bug("figures wait for answers", "api.js", 'credentials: "omit",', "",
        SIX, "server.asked >= asked + 2"),
    Bug("stop stops all", "board.js", "this.panes.push(pane);", "this.panes.push(pane);"
        "pane.stop = () => this.panes.forEach((one) => Pane.prototype.stop.call(one));",
        SIX, "server.open == 5"),
    Bug("own options are those of all", "settings.js", "...filled(own),", "", ALL, "assert own =="),
    Bug("another text is called the same", "board.js", "this.panes.findIndex(same)", "place",
        ALL, "the same text as in 1"),
    # What goes wrong.
    Bug("texts become markup", "flow.js", "else block.append(shown(text));",
        'else block.insertAdjacentHTML("beforeend", text);', TEXT, "assert shown.count(text) == 2",
        policy=False),
    Bug("a fault becomes markup", "message.js", "this.note.textContent = words;",
        "this.note.innerHTML = words;", TEXT, "expect(visit.note())", policy=False),
    Bug("control characters as they are", "words.js", ".replace(HIDDEN, visible)", "",
        TEXT, 'esrever" in shown'),
    Bug("no policy", "app.js", "live.start();", "live.start(); ",
        faults.test_the_browser_would_run_nothing_else, '== "TypeError"', policy=False),
    Bug("a full server is not asked again", "api.js", "full(words), after || 1)", "full(words))",
        FULL, "Trying again in 1 s", slow=True),
    Bug("nobody can end the waiting", "pane.js", "left > 0 && !signal.aborted;",
        "left > 0;", FULL, "visit.done()", slow=True),
    Bug("an error midway is an end", "api.js", "if (chunk.error) throw", "if (!chunk) throw",
        FULL, '"out of memory The answer ends here"', slow=True),
    Bug("a lost connection is an end", "api.js", "  throw new Fault(0, LOST);\n}\n\nfunction piece",
        "}\n\nfunction piece", FULL, "# without a last word", slow=True),
    Bug("a server that is gone stays gone", "live.js", "if (!document.hidden) this.#timer =",
        "if (!this.#misses) this.#timer =", BACK, 'to_have_text("connected")', slow=True),
    Bug("the key is kept for ever", "api.js", "sessionStorage.setItem(KEY, held)",
        "localStorage.setItem(KEY, held)", KEY, "assert not [text for text"),
    Bug("the key is in the address", "api.js", 'await fetch(path, {',
        'await fetch(`${path}?key=${key.get() ?? ""}`, {', KEY, "visit.asked"),
    Bug("a forgotten key is kept", "api.js", "else sessionStorage.removeItem(KEY);", "",
        KEY, "expect(dialog).to_be_visible()"),
    # Who uses it how.
    Bug("no focus as it opens", "app.js", "if (!side.narrow.matches) board.focus(0);", "",
        KEYS, "# as the page opens"),
    Bug("no outline", "style.css", "outline: 2px solid var(--accent)", "outline: 0",
        KEYS, '== "solid"'),
    Bug("letters are shortcuts in a prompt", "keys.js", "if (command || altKey || writes(target))",
        "if (command || altKey)", KEYS, 'to_have_value("+p?")'),
    Bug("Escape stops all", "pane.js", 'if (event.key !== "Escape") return;', "return;",
        ALL, 'to_have_attribute("data-busy", "")'),
    Bug("a new conversation has no focus", "board.js",
        "focusPrompt: () => this.focus(this.panes.length - 1)", "focusPrompt: () => {}", KEYS,
        "expect(visit.prompt(2)).to_be_focused()"),
    Bug("tokens are read aloud", "message.js", "this.text += text;",
        "this.text += text; document.getElementById('announcer').textContent = text;",
        HEARD, 'assert "Secret" not in'),
    Bug("a log that is read aloud", "pane.js", '"aria-live": "off"', '"aria-live": "polite"',
        HEARD, '== "off"'),
    Bug("a field without a name", "index.html", "<label>Seed\n", "<label></label><div>Seed\n",
        HEARD, "UNNAMED"),
    Bug("a chart without words", "charts.js", 'this.picture.setAttribute("aria-label", words);', "",
        HEARD, "UNNAMED"),
    Bug("long words run out", "answers.css", "overflow-wrap: anywhere; unicode-bidi",
        "unicode-bidi", PHONE, "sideways"),
    Bug("wider than a phone", "style.css", "main { min-height: 0;", "main { min-width: 30rem;",
        PHONE, "assert (wide, inner)"),
    Bug("the panel stays", "keys.js",
        "if (side.narrow.matches && side.open) return () => side.toggle();", "", PHONE,
        "to_be_hidden()"),
    Bug("no dark colours", "style.css", "--paper: light-dark(#f7f5f1, #161514);",
        "--paper: #f7f5f1;", THEMES, "assert dark != light"),
    Bug("the theme is not kept", "keys.js", 'localStorage.setItem("mlx-spec.theme", next);', "",
        THEMES, "== dark"),
    Bug("it moves for those who want rest", "answers.css",
        "@media (prefers-reduced-motion: no-preference) {", "@media all {", THEMES, '== "none"'),
    Bug("no language", "index.html", '<html lang="en">', "<html>",
        axe.test_axe_finds_nothing, "check("),
    Bug("words too pale in the dark", "style.css", "--soft: light-dark(#666056, #a49d91);",
        "--soft: light-dark(#666056, #5a564f);", axe.test_axe_finds_nothing, "check("),
    # Charts.
    Bug("charts that stand still", "charts.js", "this.#draw(at);",
        "if (!this.drawn) this.#draw(at); this.drawn = true;", FIGURES, "assert down[0] <"),
    Bug("charts upside down", "charts.js", "(HEIGHT - 1 - (Math.min(", "(1 + (Math.min(",
        FIGURES, "sorted(down)"),
    Bug("no gap where nothing is known", "charts.js", "value: missing(value) ? null : value }",
        "value: missing(value) ? 0 : value }", FIGURES, "# nothing was drafted lately"),
    Bug("limits for figures", "charts.js", "[s.rows?.running, s.rows?.size]",
        "[s.rows?.size, s.rows?.running]", FIGURES, '"7 of 8"'),
    Bug("a pointer reads the latest", "charts.js", "this.#show(near, latest.at);",
        "this.#show(latest);", charts.test_a_pointer_reads_earlier_figures, 'to_have_text("123")'),
]  # fmt: skip


def opened(url: str) -> Any:
    return lambda planted: Visit(planted, url)


# One of each test that takes about a second; PAGE_BUGS=all takes all, which is two minutes.
ALL_BUGS = os.environ.get("PAGE_BUGS") == "all"
DEAR = {FULL, BACK, SIX, KEY}
FIRST = [*{bug.test: bug for bug in reversed(BUGS) if bug.test not in DEAR}.values()]
TAKEN = BUGS if ALL_BUGS else FIRST


@pytest.mark.parametrize("bug", TAKEN, ids=lambda bug: bug.name)
def test_a_bug_is_seen(bug: Bug, browser: Browser) -> None:
    def attempt() -> str:
        with page_server() as server:
            return run(bug, opened(server.url), browser, server=server)

    check(attempt, bug)


# --- the page's own files -------------------------------------------------------------------------

MISSING = files.test_all_that_is_named_is_there_and_all_that_is_there_is_named
LEGEND = files.test_the_legend_knows_every_drafter
INLINE = files.test_nothing_is_inline_and_nothing_comes_from_elsewhere


@pytest.mark.parametrize(
    ("file", "right", "wrong", "test"),
    [
        ("index.html", '<script src="/page/theme.js">', '<script src="/page/them.js">', MISSING),
        ("app.js", 'byId("model").title', 'byId("modell").title', MISSING),
        ("index.html", '<body>', '<body onload="x()">', INLINE),
        ("drafters.js", "  predicted: [", "  prediction: [", LEGEND),
        ("style.css", "*, ::before", "@import 'https://fonts.example/x'; *, ::before", INLINE),
    ],
)  # fmt: skip
def test_a_bug_in_the_files_is_seen(
    file: str, right: str, wrong: str, test: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Bug("", file, right, wrong, test, "").text()
    monkeypatch.setitem(files.TEXTS, file, planted)
    with pytest.raises(AssertionError):
        test()


class Open(dict[str, Any]):
    """A page that has whatever it is asked for."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Any:
        return self["index.html"]


@pytest.mark.parametrize(
    ("name", "wrong", "test"),
    [
        ("PAGE_HEADERS", {}, files.test_every_file_comes_with_the_policy_and_once),
        ("read_page", lambda: Open(PAGE), files.test_nothing_else_can_be_read),
    ],
    ids=["no policy", "any name is a file"],
)
def test_a_bug_in_the_route_is_seen(
    name: str, wrong: Any, test: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"mlx_spec.server.routes.page.{name}", wrong)
    app = FastAPI()
    app.include_router(files.routes(None, None))
    given = {"client": TestClient(app), "name": "nothing.js"}
    wanted = inspect.signature(test).parameters
    with pytest.raises((AssertionError, KeyError)):
        test(**{one: given[one] for one in wanted})


def test_markup_of_texts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(files.TEXTS, "dom.js", "element.insertAdjacentHTML('beforeend', text);")
    with pytest.raises(AssertionError):
        files.test_no_script_makes_markup_of_texts("dom.js")


# --- with a real server ---------------------------------------------------------------------------

REAL_BUGS = [
    Bug("no drafter is named", "settings.js", "mlx_spec: { drafts: true },", "",
        real.test_guessed_tokens_are_tinted_and_the_text_is_the_model_s, "not_to_have_count(0)"),
    Bug("one alone", "board.js",
        "else for (const pane of this.panes) pane.composer.send();",
        "else this.panes[0].composer.send();",
        real.test_six_run_as_one_batch_and_stop_frees_their_rows, "not_to_be_empty()"),
    Bug("the request runs on", "board.js", "for (const pane of this.panes) pane.stop();",
        "for (const pane of this.panes) pane.toggle?.();",
        real.test_six_run_as_one_batch_and_stop_frees_their_rows, "visit.done(number)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    options = ServerOptions(port=0, api_key=(real.KEY,))
    with running_server(options, target=toy(real.LONG), batch_size=6, draft=toy(real.LONG)) as live:
        yield live


@pytest.mark.parametrize("bug", REAL_BUGS if ALL_BUGS else REAL_BUGS[-1:], ids=lambda bug: bug.name)
def test_a_bug_is_seen_at_a_real_server(bug: Bug, browser: Browser, live: Live) -> None:
    def with_key(planted: PlantedBrowser) -> Visit:
        return real.with_key(Visit(planted, live.url))

    check(lambda: run(bug, with_key, browser, live=live), bug)


def test_every_test_of_the_page_has_a_bug() -> None:
    own = {bug.test for bug in (*BUGS, *REAL_BUGS)}
    for module in (answers, axe, charts, faults, real, use):
        tests = {one for name, one in vars(module).items() if name.startswith("test_")}
        assert tests <= own, tests - own
