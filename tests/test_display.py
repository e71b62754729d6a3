"""How results and statistics show themselves: everything is escaped, and nothing is missing."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from mlx_spec.batching.chunk_buffer import ChunkBuffer
from mlx_spec.batching.generator import GeneratorStats
from mlx_spec.batching.prompts import prompt_label
from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.display import MOST_CHARACTERS, MOST_ROWS, seconds
from mlx_spec.results import BatchResult, GenerationResult, GenerationStats

EVIL = "<script>alert(1)</script> & \"quotes\" <img src=x onerror='1'> [bold]markup[/bold]"

RESULT = GenerationResult(
    text=EVIL,
    token_ids=[1, 2, 3],
    finish_reason="stop",
    prompt_tokens=1200,
    generation_tokens=3,
    ttft=0.5,
    duration=2.5,
    drafted=8,
    accepted=6,
    reused_tokens=64,
)
STATS = GenerationStats(
    prompt_tokens=1200,
    generation_tokens=300,
    prompt_time=2.0,
    generation_time=3.0,
    peak_memory=2_500_000_000,
    steps=100,
    drafted=80,
    accepted=60,
    row_steps=150,
    draft_lengths={0: 20, 4: 80},
)
GENERATOR = GeneratorStats(
    waiting=3,
    running=4,
    finished=5,
    cancelled=6,
    preempted=7,
    batch_size=8,
    cache_bytes=9_000_000,
    generation=STATS,
)


class Checker(HTMLParser):
    """Collects the texts of a page and checks that its tags are ours and balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"div", "table", "tr", "td", "th", "pre", "b"}, tag
        assert {name for name, _ in attrs} <= {"style"}
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def finish(self) -> str:
        self.close()
        assert self._open == []
        return "\n".join(self.texts)


def shown(value: Any) -> str:
    """The text that a notebook shows."""
    checker = Checker()
    checker.feed(value._repr_html_())
    return checker.finish()


def on_terminal(value: Any) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(value)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_a_result_shows_its_text_escaped_and_its_figures() -> None:
    text = shown(RESULT)
    assert EVIL in text
    for figure in ("stop", "1,200 prompt + 3 generated", "500.0 ms", "1.00 s", "75.0% (6 of 8)"):
        assert figure in text
    assert "64" in text
    assert str(RESULT) == EVIL
    terminal = on_terminal(RESULT)
    assert "[bold]markup[/bold]" in terminal
    assert "75.0% (6 of 8)" in terminal


def test_a_result_without_a_draft_says_nothing_of_one() -> None:
    text = shown(replace(RESULT, drafted=0, accepted=0, reused_tokens=0))
    assert "acceptance" not in text
    assert "reused" not in text


@pytest.mark.parametrize("show", [shown, on_terminal, str])
def test_statistics_show_the_same_everywhere(show: Any) -> None:
    text = show(STATS)
    for figure in ("600.0 tok/s", "100.0 tok/s", "2.500 GB", "75.0% (60 of 80)", "2.00"):
        assert figure in text
    assert "0: 20 steps, 4: 80 steps" in text


@pytest.mark.parametrize("show", [shown, on_terminal, str])
def test_a_generator_shows_its_queues_and_its_statistics(show: Any) -> None:
    text = show(GENERATOR)
    for figure in ("4 running, 3 waiting", "5 finished, 6 cancelled", "9.0 MB", "2.500 GB"):
        assert figure in text


def test_empty_statistics_show_themselves_too() -> None:
    assert "0 tokens" in shown(GenerationStats())
    assert "0 tokens" in str(GenerationStats())


def test_a_batch_shows_a_row_a_request() -> None:
    batch = BatchResult([RESULT, replace(RESULT, text="second", finish_reason="length")], STATS)
    text = shown(batch)
    for part in (EVIL, "second", "length", "2.500 GB"):
        assert part in text
    terminal = on_terminal(batch)
    assert "<script>alert(1)</script>" in terminal
    assert "[bold]markup[/bold]" in terminal  # text, not rich's markup
    assert "second" in terminal
    assert "tokens a verify pass" in terminal  # the statistics are there too


def test_a_batch_shows_what_was_asked() -> None:
    """Stops a table of answers without their questions, and dumps of token ids."""
    batch = BatchResult([RESULT], STATS, ("Why is <b>the</b> sky blue?",))
    for show in (shown, on_terminal, str):
        assert "Why is <b>the</b> sky blue?" in show(batch)
    assert repr(batch) == "<BatchResult: 1 results, 3 tokens>"
    assert "token_ids" not in repr(RESULT)
    assert "3 tokens" in str(batch)


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("x", "x"),
        ([1, 2, 3], "3 token ids"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "b"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "1 messages"),
    ],
)
def test_prompts_are_known_by_what_a_person_wrote(prompt: Any, label: str) -> None:
    assert prompt_label(prompt) == label


def test_text_boxes_look_like_the_table_that_they_are_in() -> None:
    """Stops white boxes in striped rows, and words that are broken anywhere."""
    html = BatchResult([RESULT], STATS)._repr_html_()
    for style in ("background:none", "color:inherit", "word-break:normal"):
        assert html.count(style) == 2


def test_a_large_batch_is_cut_and_says_so() -> None:
    long = replace(RESULT, text="x" * (MOST_CHARACTERS + 1))
    batch = BatchResult([long] * (MOST_ROWS + 7), STATS)
    assert "and 7 more" in shown(batch)
    assert "x" * MOST_CHARACTERS + "..." in shown(batch)
    assert "x" * (MOST_CHARACTERS + 1) not in shown(batch)
    assert "and 7 more" in on_terminal(batch)
    assert "more" not in shown(BatchResult([long] * MOST_ROWS, STATS))


def test_a_stream_shows_how_it_stands() -> None:
    buffers = [ChunkBuffer("<b>r1</b>", lambda _: None) for _ in range(3)]
    running, finished, failed = map(TokenStream, buffers)
    buffers[1].put([], RESULT)
    buffers[2].fail(ValueError("<i>planted</i>"))
    assert "<b>r1</b>" in shown(running)
    assert "running, 0 chunks not read yet" in shown(running)
    assert EVIL in shown(finished)
    assert "failed: ValueError('<i>planted</i>')" in shown(failed)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0 ms"), (0.0125, "12.5 ms"), (1.0, "1.00 s"), (75.0, "75.00 s")]
)
def test_times_have_the_unit_that_suits_them(value: float, text: str) -> None:
    assert seconds(value) == text
