"""What a model's text consists of: the same parts however the text is cut into pieces."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mlx_spec.server.protocol import call_stream
from mlx_spec.server.protocol.markers import Splitter
from mlx_spec.server.protocol.parts import Called, Part, Reading, Said, Thought, blocks_of
from mlx_spec.server.protocol.tools import ToolUse
from tests.chat_words import spoken, thinking_tokenizer

LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
AUTO = ToolUse((LOOK,), "auto")
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "\u00e4"}}\n</tool_call>'
LOOKED = ("look", '{"at": "\u00e4"}')


def shown(parts: list[Part]) -> list[Any]:
    """Parts as texts; neighbours of one kind are joined."""
    found: list[Any] = []
    for part in parts:
        kind = type(part).__name__
        text = part.call.arguments if isinstance(part, Called) else part.text
        if isinstance(part, Called) and part.begins:
            found.append((part.call.name, text))
        elif isinstance(part, Called):
            found[-1] = (found[-1][0], found[-1][1] + text)
        elif found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + text)
        else:
            found.append((kind, text))
    return found


TEXTS = [
    ("Hello\n", {}, [("Said", "Hello\n")]),
    ("<think>Hm.\n</think>\n\nYes\n", {}, [("Thought", "Hm."), ("Said", "Yes\n")]),
    ("Hm.</think>Yes", {"thinking": True}, [("Thought", "Hm."), ("Said", "Yes")]),
    ("Hm.", {"thinking": True}, [("Thought", "Hm.")]),
    ("<think>\n\n</think>\n\nYes", {}, [("Said", "Yes")]),
    ("<think>Hm.</think>Yes", {"split": False}, [("Said", "<think>Hm.</think>Yes")]),
    ("a <thin b", {}, [("Said", "a <thin b")]),
    ("a <th", {}, [("Said", "a <th")]),
    ("\n<think>Hm", {}, [("Thought", "Hm")]),
    (CALL, {"tools": AUTO}, [LOOKED]),
    (f"Well.\n\n{CALL}\n{CALL}\n", {"tools": AUTO}, [("Said", "Well."), LOOKED, LOOKED]),
    (f"<think>So {CALL}", {"tools": AUTO}, [("Thought", "So"), LOOKED]),
    (f"{CALL}\nDone. ", {"tools": AUTO}, [LOOKED, ("Said", "Done. ")]),
    (CALL, {}, [("Said", CALL)]),
    # What is no call is told as it was written.
    (
        "So: <tool_call>{no}</tool_call> x",
        {"tools": AUTO},
        [("Said", "So: <tool_call>{no}</tool_call> x")],
    ),
    (
        '<tool_call>{"arguments": {}}</tool_call>',
        {"tools": AUTO},
        [("Said", '<tool_call>{"arguments": {}}</tool_call>')],
    ),
    # A stop text may have taken the mark that ends it.
    (CALL[: -len("</tool_call>")], {"tools": AUTO}, [LOOKED]),
    ('{"at": 1}', {"tools": ToolUse((LOOK,), "named", "look")}, [("look", '{"at": 1}')]),
    (
        '[{"name": "look", "arguments": {}}, {"name": "look", "arguments": {"at": 2}}]',
        {"tools": ToolUse((LOOK,), "required")},
        [("look", "{}"), ("look", '{"at": 2}')],
    ),
]


@pytest.mark.parametrize(("text", "how", "parts"), TEXTS)
def test_parts_are_the_same_however_a_text_is_cut(
    text: str, how: dict[str, Any], parts: list[Any]
) -> None:
    rng = random.Random(1)
    reading = Reading(thinking_tokenizer(), request_id="r", **how)
    for pieces in (1, 3, 8, len(text)):
        cuts = sorted(rng.choices(range(len(text) + 1), k=pieces - 1))
        if pieces == len(text):
            cuts = list(range(1, len(text)))
        reader, found = reading.reader(0), list[Part]()
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            found += reader.add(text[begin:end])
        assert shown([*found, *reader.finish(True)]) == parts


def test_a_call_that_was_cut_off_is_one_from_its_arguments_on() -> None:
    reading = Reading(thinking_tokenizer(), AUTO)
    cut = "x " + CALL[:-20]
    parts = blocks_of(reading, spoken(cut, "length")[1], 0)
    assert shown(parts) == [("Said", "x"), ("look", '{"at"')]
    cut = "x " + CALL[: CALL.index("arguments")]
    assert shown(blocks_of(reading, spoken(cut, "length")[1], 0)) == [("Said", cut)]
    named = Reading(thinking_tokenizer(), ToolUse((LOOK,), "named", "look"))
    assert shown(blocks_of(named, spoken('{"a', "length")[1], 0)) == [("look", '{"a')]
    required = Reading(thinking_tokenizer(), ToolUse((LOOK,), "required"))
    assert shown(blocks_of(required, spoken('[{"a', "length")[1], 0)) == [("Said", '[{"a')]


ODD = [
    '{"a": "}\\"{", "b": [{"c": {}}, "]"]}',
    '{"path": "C:\\\\", "n": -1.5e3,   "x": null}',
    "{}",
    '{ "at" : "\u00e4🙂\\u00e4" }',
]


def in_pieces(text: str, reading: Reading) -> list[Part]:
    """Letter by letter."""
    reader, parts = reading.reader(0), list[Part]()
    for letter in text:
        parts += reader.add(letter)
    return [*parts, *reader.finish(True)]


@pytest.mark.parametrize("arguments", ODD)
def test_arguments_come_as_they_are_written(arguments: str) -> None:
    """The name first; all of them together are those of the whole answer, letter for letter."""
    call = f'<tool_call>{{"name": "look", "arguments": {arguments}}}</tool_call>'
    reading = Reading(thinking_tokenizer(), AUTO, request_id="r")
    parts = in_pieces(f"So: {call}\n{call}", reading)
    calls = [part for part in parts if isinstance(part, Called)]
    assert (calls[0].call.name, calls[0].call.arguments, calls[0].begins) == ("look", "", True)
    assert len(calls) == 2 + 2 * len(arguments)
    assert shown(parts) == [("Said", "So:"), ("look", arguments), ("look", arguments)]
    assert shown(blocks_of(reading, spoken(f"So: {call}\n{call}")[1], 0)) == shown(parts)


@pytest.mark.parametrize(
    "call",
    [
        '{"arguments": {"at": "a"}, "name": "look"}',  # the name comes last
        '{"name": "look", "arguments": "{\\"at\\": \\"a\\"}"}',  # JSON in a text
        '{"name": "look", "id": "7", "arguments": {"at": "a"}}',
    ],
)
def test_a_call_in_another_order_comes_when_it_is_whole(call: str) -> None:
    parts = in_pieces(f"<tool_call>{call}</tool_call>", Reading(thinking_tokenizer(), AUTO))
    [only] = [part for part in parts if isinstance(part, Called)]
    assert (only.call.name, only.call.arguments) == ("look", '{"at": "a"}')


def test_of_calls_that_may_not_be_parallel_the_first_is_streamed() -> None:
    one = Reading(thinking_tokenizer(), ToolUse((LOOK,), "auto", parallel=False))
    assert shown(in_pieces(CALL + CALL, one)) == [LOOKED]


def test_quotes_that_are_taken_for_ends_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: nobody heeds a backslash; and nobody counts brackets."""
    text = f'<tool_call>{{"name": "look", "arguments": {ODD[0]}}}</tool_call>'
    reading = Reading(thinking_tokenizer(), AUTO)
    assert shown(in_pieces(text, reading)) == [("look", ODD[0])]
    real = call_stream.CallStream._arguments

    def heedless(self: Any) -> int:
        self._escaped = False
        return real(self)

    monkeypatch.setattr(call_stream.CallStream, "_arguments", heedless)
    assert shown(in_pieces(text, reading)) != [("look", ODD[0])]


def test_calls_have_ids_of_the_request() -> None:
    reading = Reading(thinking_tokenizer(), AUTO, request_id="r")
    blocks = blocks_of(reading, spoken(CALL + CALL)[1], 2)
    assert [one.call.id for one in blocks if isinstance(one, Called)] == [
        "call_r_2_0",
        "call_r_2_1",
    ]
    only = Reading(thinking_tokenizer(), ToolUse((LOOK,), "auto", parallel=False))
    assert len(blocks_of(only, spoken(CALL + CALL)[1], 0)) == 1


def test_text_is_not_held_back_without_need() -> None:
    splitter = Splitter({"normal": [("<think>", "reasoning")]})
    assert [one.text for one in splitter.add("a < b <t")] == ["a < b "]
    assert [one.text for one in splitter.add("o")] == ["<to"]
    reading = Reading(thinking_tokenizer())
    assert reading.reader(0).add("word") == [Said("word")]
    assert Reading(thinking_tokenizer(), thinking=True).reader(0).add("word") == [Thought("word")]
