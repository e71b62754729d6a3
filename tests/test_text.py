"""Tokens become text as they come: nothing lost, nothing half, and cut where a stop text begins."""

from __future__ import annotations

import random
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer

import mlx_spec
from mlx_spec.batching.detokenizers import (
    Detokenizer,
    NoDetokenizer,
    PieceDetokenizer,
    StreamDetokenizer,
    WrapperDetokenizer,
    make_detokenizer,
)
from mlx_spec.batching.text import StopFinder, TextStream

TEXTS = (
    "def read_config(path: str) -> dict:\n    with open(path) as file:\n        return {}\n",
    "class Stack:\n\t\tpass\n\n\n    # Grüße, señor Åse — naïve café “quotes”\n",
    "emoji: 😀👩‍👩‍👧‍👦🏳️‍🌈, maths: ∑∞≠, 日本語のテキスト, עברית, हिन्दी\n",
    "   leading spaces,  double  spaces, and trailing ones   ",
)


@cache
def tokenizer() -> Any:
    return load_tokenizer(Path(mlx_spec.__file__).parent / "demo_models" / "target")


def encode(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False))


def run(detokenizer: Detokenizer, tokens: Iterable[int]) -> list[str]:
    """The piece of each token, and the closing one."""
    pieces = [detokenizer.add(token) for token in tokens]
    return [*pieces, detokenizer.finish()]


@st.composite
def real_tokens(draw: st.DrawFn) -> list[int]:
    """Tokens of real texts, cut and joined anywhere (between characters)."""
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        text = draw(st.sampled_from(TEXTS))
        begin = draw(st.integers(0, len(text) - 1))
        parts.append(text[begin : begin + draw(st.integers(1, 30))])
    return encode("".join(parts))


# --- pieces -----------------------------------------------------------------------------------


@given(tokens=real_tokens(), prompt=real_tokens())
@settings(max_examples=60, deadline=None)
def test_pieces_join_to_what_the_tokenizer_decodes(tokens: list[int], prompt: list[int]) -> None:
    """Stops lost, doubled or replaced characters, and a prompt that leaks into the output."""
    pieces = run(make_detokenizer(tokenizer(), prompt), tokens)
    assert "".join(pieces) == tokenizer().decode(tokens)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_is_given_out_whole_and_at_once(text: str) -> None:
    """Stops both half characters and text held back longer than it must be."""
    tokens = encode(text)
    detokenizer = make_detokenizer(tokenizer(), encode("# "))
    given = ""
    for count, token in enumerate(tokens, 1):
        given += detokenizer.add(token)
        # What is certain of a byte-level text: all but the bytes of an incomplete character.
        assert given == tokenizer().decode(tokens[:count]).rstrip("\ufffd")


@given(
    tokens=st.lists(st.integers(0, 2047), min_size=1, max_size=30),
    prompt=st.lists(st.integers(0, 2047), min_size=1, max_size=12).filter(
        lambda ids: not tokenizer().decode(ids).endswith("\ufffd")
    ),
)
@settings(max_examples=150, deadline=None)
def test_any_tokens_can_be_decoded(tokens: list[int], prompt: list[int]) -> None:
    """Stops one hot row's broken bytes from ending the whole batch with an exception."""
    text = "".join(run(make_detokenizer(tokenizer(), prompt), tokens))
    assert text.rstrip("\ufffd") == tokenizer().decode(tokens).rstrip("\ufffd")


@pytest.mark.parametrize("broken", ["replacement character", "half a character"])
def test_a_prompt_that_ends_in_a_broken_character_stays_out_of_the_output(broken: str) -> None:
    """Stops the prompt's last tokens from being printed as if they were generated. JSONL that was
    once decoded with errors="replace", or a prompt of ids cut anywhere, ends like that.
    """
    emoji = encode("😀")
    assert len(emoji) > 1
    tail = encode("\ufffd") if broken == "replacement character" else emoji[:1]
    detokenizer = make_detokenizer(tokenizer(), encode("key") + tail)
    text = "".join(run(detokenizer, encode(" def f")))
    assert text.lstrip("\ufffd") == " def f"


def test_incomplete_bytes_at_the_end_are_no_text() -> None:
    """Stops a replacement character after the last token."""
    tokens = encode("ok 😀")
    pieces = run(make_detokenizer(tokenizer(), encode("x")), tokens[:-1])
    assert "".join(pieces) == "ok "


def test_first_token_continues_the_prompt() -> None:
    """Stops a leading space that is dropped because the first token is decoded on its own."""
    prompt, tokens = encode("def"), encode(" read")
    for detokenizer in (make_detokenizer(tokenizer(), prompt), make_detokenizer(tokenizer(), [5])):
        assert "".join(run(detokenizer, tokens)) == " read"


@given(tokens=real_tokens())
@settings(max_examples=40, deadline=None)
def test_the_wrapper_path_gives_the_same_text(tokens: list[int]) -> None:
    """Stops text lost at the end or doubled for tokenizers without a Rust backend. mlx-lm's own
    detokenizer drops one space at the very start of a text.
    """
    text = tokenizer().decode(tokens)
    pieces = run(WrapperDetokenizer(tokenizer()), tokens)
    assert "".join(pieces) in (text, text.removeprefix(" "))


def test_rows_have_detokenizers_of_their_own() -> None:
    """Stops rows that write into one another's text because the tokenizer is shared."""
    backend = tokenizer().backend_tokenizer
    for first, second in (
        (WrapperDetokenizer(tokenizer()), WrapperDetokenizer(tokenizer())),
        (StreamDetokenizer(backend, [5]), StreamDetokenizer(backend, [5])),
        (make_detokenizer(tokenizer(), [5]), make_detokenizer(tokenizer(), [5])),
    ):
        rows: tuple[list[str], list[str]] = ([], [])
        for a, b in zip(encode("A😀 one two"), encode("Bé three four"), strict=False):
            rows[0].append(first.add(a))
            rows[1].append(second.add(b))
        rows[0].append(first.finish())
        rows[1].append(second.finish())
        assert "".join(rows[0]).startswith("A😀")
        assert "".join(rows[1]).startswith("Bé thr")
        assert "three" not in "".join(rows[0])


def test_the_detokenizer_fits_the_tokenizer() -> None:
    """Stops the slow path for a tokenizer with a Rust backend, and text without any tokenizer."""

    class WithoutBackend:
        detokenizer = tokenizer().detokenizer

    assert isinstance(make_detokenizer(tokenizer(), [1]), PieceDetokenizer)
    assert isinstance(make_detokenizer(WithoutBackend(), [1]), WrapperDetokenizer)
    assert isinstance(make_detokenizer(None, [1]), NoDetokenizer)
    assert run(make_detokenizer(None, [1]), [5, 6]) == ["", "", ""]


# --- stop texts -------------------------------------------------------------------------------


class Pieces:
    """A detokenizer whose token i is the text ``pieces[i]``."""

    def __init__(self, pieces: Seq[str], held: str = "") -> None:
        self._pieces = pieces
        self._held = held

    def add(self, token: int) -> str:
        return self._pieces[token]

    def finish(self) -> str:
        return self._held


def oracle(pieces: Seq[str], stops: Seq[str]) -> tuple[str, bool, int]:
    """The slow truth: text up to the first stop, whether there is one, and pieces used.

    The text ends with the first piece that completes some stop text, cut at the earliest one.
    """
    for count in range(1, len(pieces) + 1):
        text = "".join(pieces[:count])
        places = [text.find(stop) for stop in stops if stop in text]
        if places:
            return text[: min(places)], True, count
    return "".join(pieces), False, len(pieces)


# Few letters, so that stops overlap one another and themselves all the time.
LETTERS = st.text(alphabet="ab😀", max_size=4)


@given(
    pieces=st.lists(LETTERS, max_size=12),
    stops=st.lists(st.text(alphabet="ab😀", min_size=1, max_size=5), max_size=3),
)
@example(pieces=["a", "b", "c", "d"], stops=["abcd", "bc"])
@example(pieces=["aab"], stops=["ab"])
@example(pieces=["aa", "aa", "b"], stops=["aaab"])
@example(pieces=["ab", "ab", "ab"], stops=["ababb", "bab😀"])
@example(pieces=["stop", "me"], stops=["stop"])
@example(pieces=["x", "", "st", "", "op"], stops=["stop", "p"])
@settings(max_examples=400, deadline=None)
def test_text_ends_where_the_first_stop_begins(pieces: list[str], stops: list[str]) -> None:
    """Stops a stop text missed across pieces or after a false start, and text given out that is
    part of one.
    """
    expected, found, used = oracle(pieces, stops)
    stream = TextStream(Pieces(pieces), stops)
    given_out = ""
    for token in range(len(pieces)):
        given_out += stream.add(token)
        # What is out can never be taken back.
        assert expected.startswith(given_out)
        if stream.stopped:
            assert token == used - 1
            break
    assert stream.stopped == found
    given_out += stream.finish()
    assert given_out == stream.text == expected


@given(text=LETTERS, stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1))
def test_no_more_is_held_back_than_may_become_a_stop(text: str, stops: list[str]) -> None:
    """Stops a stream that stutters because it holds back too much."""
    piece, found = StopFinder(stops).add(text)
    if not found:
        held = text[len(piece) :]
        assert text.startswith(piece)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_false_start_is_given_out_at_the_end() -> None:
    """Stops a lost tail: the text ends in what might have become a stop text."""
    stream = TextStream(Pieces(["one <", "|en"]), ["<|end|>"])
    assert [stream.add(0), stream.add(1), stream.finish()] == ["one ", "", "<|en"]
    assert stream.text == "one <|en"
    assert not stream.stopped


def test_what_the_detokenizer_held_may_complete_a_stop() -> None:
    """Stops a stop text that is missed because its last part came with ``finish``."""
    stream = TextStream(Pieces(["one <e"], held="nd> two"), ["<end>"])
    assert stream.add(0) == "one "
    assert stream.finish() == ""
    assert stream.text == "one "


def test_nothing_follows_a_stop() -> None:
    """Stops what a detokenizer still holds from being printed after the stop text."""
    stream = TextStream(Pieces(["one<end>"], held=" two"), ["<end>"])
    assert stream.add(0) == "one"
    assert stream.stopped
    assert stream.finish() == ""
    assert stream.text == "one"
    assert stream.stopped


def test_stop_texts_across_real_tokens() -> None:
    """Stops texts found only when they are one token, with either detokenizer."""
    rng = random.Random(3)
    for text in TEXTS[:3]:
        tokens = encode(text)
        for _ in range(20):
            begin = rng.randrange(len(text))
            stop = text[begin : begin + rng.randint(1, 9)]
            prompt = encode("x")
            fast = make_detokenizer(tokenizer(), prompt)
            for detokenizer in (fast, WrapperDetokenizer(tokenizer())):
                stream = TextStream(detokenizer, [stop])
                for token in tokens:
                    stream.add(token)
                    if stream.stopped:
                        break
                stream.finish()
                assert stream.text == text[: text.find(stop)]
