"""Constraints on texts that a tokenizer reads as other tokens, and odd texts of all sorts.

Stops a 500: the grammar left one text, ``<think>``, for which the tokenizer has a token that is
none of the text's, and no other was allowed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlx_spec import (
    BatchingConfig,
    GenerationResult,
    InvalidRequest,
    SamplingParams,
    SpeculationConfig,
    Structure,
    batch_generate,
)
from mlx_spec.structured import compiler, vocabulary
from tests.chat_words import thinking_tokenizer
from tests.clients import thinker
from tests.structures import small_tokenizer

NGRAMS: dict[str, Any] = {"draft": "ngram", "adaptive": False}
END = str(thinking_tokenizer().eos_token)
MARKED: dict[str, tuple[Structure, set[str]]] = {
    "a choice": (Structure.choices(["<think>"]), {"<think>"}),
    "in the middle": (Structure.choices(["a</think> b"]), {"a</think> b"}),
    "one of two": (Structure.choices(["<think>", "<tool_call>"]), {"<think>", "<tool_call>"}),
    "a regex": (Structure.regex(r"(<think>){2}"), {"<think><think>"}),
    "a value": (Structure.json_schema({"const": "<think>"}), {'"<think>"'}),
    "a name": (
        Structure.json_schema(
            {
                "type": "object",
                "properties": {"<think>": {"enum": [1, 2]}},
                "required": ["<think>"],
                "additionalProperties": False,
            }
        ),
        {'{"<think>": 1}', '{"<think>": 2}'},
    ),
    "a grammar": (Structure.grammar('start: "<think>" | "</think>x"'), {"<think>", "</think>x"}),
    "the end of a text": (Structure.choices([END]), {END}),
    "nothing": (Structure.choices([""]), {""}),
    "a blank": (Structure.choices([" ", "\n"]), {" ", "\n"}),
    "twice the same": (Structure.choices(["ab", "ab"]), {"ab"}),
    "other scripts": (
        Structure.choices(["да", "是的", "🙂", "שלום"]),
        {"да", "是的", "🙂", "שלום"},
    ),
    "no letter": (Structure.choices(["a\x00b"]), {"a\x00b"}),
}


def said(count: int = len(MARKED), **speculation: Any) -> list[GenerationResult]:
    """All of them in one batch, each with a neighbour that may say anything."""
    options = [
        SamplingParams(max_tokens=40, temperature=0.7, seed=n, structure=structure)
        for n, (structure, _) in enumerate(list(MARKED.values())[:count])
        for structure in (structure, None)
    ]
    prompts = [[5 + n, 9] for n in range(len(options))]
    alone = BatchingConfig(batch_size=1 if speculation.get("enabled") is False else 4)
    return batch_generate(
        *thinker(),
        prompts,
        sampling=options,
        batching=alone,
        speculation=SpeculationConfig(**speculation),
    ).results


@pytest.fixture(scope="module")
def plain() -> list[GenerationResult]:
    return said(enabled=False)


def test_marks_are_said_letter_by_letter(plain: list[GenerationResult]) -> None:
    for (name, (_, texts)), result in zip(MARKED.items(), plain[::2], strict=True):
        assert result.finish_reason == "stop", f"{name}: {result.error}"
        assert result.text in texts, name
    marks = set(range(2048, 2052))
    assert not any(marks & set(result.token_ids) for result in plain[::2])


@pytest.mark.parametrize("kind", ["forced", "ngram"])
def test_drafts_change_nothing_of_it(kind: str, plain: list[GenerationResult]) -> None:
    """What is forced is guessed, and right."""
    drafts = {} if kind == "forced" else NGRAMS
    made = said(**drafts)
    assert [one.token_ids for one in made] == [one.token_ids for one in plain]
    forced = [one.drafters["forced"] for one in made[::2] if "forced" in one.drafters]
    assert sum(one.accepted for one in forced) > 20
    assert sum(one.accepted for one in forced) == sum(one.drafted for one in forced)


def read_as_it_likes(patch: pytest.MonkeyPatch) -> None:
    """The tokenizer's own reading, in which a mark is a token."""
    patch.setattr(
        vocabulary.SpelledTokens, "__call__", lambda self, text: self._known.tokenize_str(text)
    )


def test_a_planted_bug_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_MADE", {})
    monkeypatch.setattr(compiler, "_KEPT", type(compiler._KEPT)())
    read_as_it_likes(monkeypatch)
    made = said(3, enabled=False)[::2]
    assert all("doesn't satisfy" in str(one.error) for one in made[:2])


HALF = "\ud800"
REFUSED: dict[str, Callable[[], Any]] = {
    "no choice": lambda: Structure.choices([]),
    "half a pair": lambda: Structure.choices([f"a{HALF}"]),
    "half a pair, escaped": lambda: Structure("choices", json.dumps([HALF])),
    "half a pair in a schema": lambda: Structure.json_schema(json.dumps({"const": HALF})),
    "half a pair in a name": lambda: Structure.json_schema({"properties": {HALF: {}}}),
    "half a pair in a regex": lambda: Structure.regex(HALF),
    "half a pair in a grammar": lambda: Structure.grammar(f'start: "{HALF}"'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_text_can_hold_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        REFUSED[name]()


@pytest.mark.parametrize("text", ["<end>", "A", "é", "<unused3>"])
def test_letters_that_a_tokenizer_lacks_are_told_before_anything_runs(text: str) -> None:
    with pytest.raises(InvalidRequest, match="that the tokenizer could write"):
        compiler.guide_of(Structure.choices([text]), small_tokenizer())


# --- behind reasoning ---------------------------------------------------------------------------

THINK_END = 2049  # which a random model would seldom say
BEHIND: dict[str, tuple[Structure, Callable[[str], bool]]] = {
    "choices": (Structure.choices(["yes", "no", "<think>"]), {"yes", "no", "<think>"}.__contains__),
    "regex": (Structure.regex("[0-9]{3}-abcdef"), lambda text: text[3:] == "-abcdef"),
    "object": (
        Structure.json_schema({"type": "object", "maxProperties": 0}),
        lambda text: json.loads(text) == {},
    ),
    "schema": (
        Structure.json_schema({"const": {"name": "apple"}}),
        lambda text: json.loads(text) == {"name": "apple"},
    ),
    "lark": (
        Structure.grammar('start: head "-abcdefgh"\nhead: "x" | "y"\n'),  # names like our own
        {"x-abcdefgh", "y-abcdefgh"}.__contains__,
    ),
    "gbnf": (Structure.grammar('root ::= "ab" ("c" | "d")'), {"abc", "abd"}.__contains__),
}


def reasoned(mark: str, **speculation: Any) -> list[GenerationResult]:
    """Each kind twice, greedy and sampled; the model thinks for a while."""
    ends = {THINK_END: 6.0} if mark == "</think>" else {}
    options = [
        SamplingParams(
            max_tokens=80,
            temperature=float(n),
            seed=n,
            logit_bias=ends,
            structure=Structure(one.kind, one.text, mark),
        )
        for one, _ in BEHIND.values()
        for n in (0, 1)
    ]
    return batch_generate(
        *thinker(),
        [[5 + n, 9] for n in range(len(options))],
        sampling=options,
        batching=BatchingConfig(batch_size=1 if speculation.get("enabled") is False else 4),
        speculation=SpeculationConfig(**speculation),
    ).results


def check_reasoned(mark: str, made: list[GenerationResult]) -> Iterator[int]:
    """How long each was thought about; what follows is right."""
    checks = [check for _, check in BEHIND.values() for _ in (0, 1)]
    for check, result in zip(checks, made, strict=True):
        assert result.error is None
        before, found, answer = result.text.partition(mark)
        if found:
            assert mark not in answer
        if result.finish_reason == "stop":
            assert found
            assert check(answer.lstrip("\n")), answer
            yield len(before)


def test_every_kind_of_shape_begins_where_reasoning_has_ended() -> None:
    plain = reasoned("</think>", enabled=False)
    assert len(list(check_reasoned("</think>", plain))) > 6
    assert max(check_reasoned("</think>", plain)) > 10
    made = reasoned("</think>")
    assert [one.token_ids for one in made] == [one.token_ids for one in plain]
    # Nothing is forced in reasoning, and much of what follows is.
    forced = [one.drafters["forced"] for one in made if "forced" in one.drafters]
    assert sum(one.accepted for one in forced) > 20
    guessing = reasoned("</think>", **NGRAMS)
    assert [one.token_ids for one in guessing] == [one.token_ids for one in plain]


def test_a_mark_may_be_a_text() -> None:
    """Of several tokens, whose last one may hold the beginning of the answer."""
    guide = compiler.guide_of(Structure("choices", '["yes"]', "[/END]"), thinking_tokenizer())
    for text, tokens in (("[/EN] x", True), ("[/END]\n\nyes", True), ("[/END]no", False)):
        ids = thinking_tokenizer().encode(text, add_special_tokens=False)
        assert (guide.allowed(ids) == len(ids)) is tokens


def test_a_shape_that_begins_at_once_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: nobody waits for the end of reasoning; and the mark in other tokens is one."""
    spelled = thinking_tokenizer().encode("</thin", add_special_tokens=False)
    spelled += thinking_tokenizer().encode("k>", add_special_tokens=False)
    behind = Structure("choices", '["yes"]', "</think>")
    assert compiler.guide_of(behind, thinking_tokenizer()).allowed(spelled) < len(spelled)
    monkeypatch.setattr(compiler, "_KEPT", type(compiler._KEPT)())
    monkeypatch.setattr(compiler, "_behind", lambda structure, grammar, *_: grammar)
    with pytest.raises(AssertionError):
        list(check_reasoned("</think>", reasoned("</think>", enabled=False)))
