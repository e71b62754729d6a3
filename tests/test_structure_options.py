"""Constraints as people write them: fields, flags, records, and what is wrong with some."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_spec.structured.vocabulary as vocabulary
from mlx_spec import BatchedMLXGenerator, SamplingParams, Structure, batch_generate, load
from mlx_spec.batching.prompts import make_sequences
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.record_sampling import sampling_of
from mlx_spec.pipeline.stage import Generate
from mlx_spec.pipeline.stages.structure import StructureText
from mlx_spec.results import GenerationResult
from mlx_spec.structured import compiler
from mlx_spec.structured.compiler import guide_of
from mlx_spec.structured.masks import fill_masks
from tests.models import VOCABULARY, make_model
from tests.scenario import target
from tests.structured_runs import constraints
from tests.structures import END, small_tokenizer

ANN: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
OBJECT = Structure.json_schema({"type": "object"})


def written(structure: Structure, text: str) -> bool:
    """Whether a text is one of a constraint's, token for token as the tokenizer splits it."""
    guide = guide_of(structure, small_tokenizer())
    guide.follow(small_tokenizer().encode(text))
    words = fill_masks([guide], [[]]).words
    return guide.trouble is None and bool(words[0, 0, END // 32] >> END & 1)


def test_a_response_format_is_a_structure() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": ANN}}
    assert SamplingParams(response_format=schema).structure == Structure.json_schema(ANN)
    assert SamplingParams(response_format={"type": "json_object"}).structure == OBJECT
    assert SamplingParams(response_format={"type": "text"}).structure is None
    free = replace(SamplingParams(structure=OBJECT), response_format={"type": "text"})
    assert free.structure is None
    hash(SamplingParams(response_format=schema))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"structure": "yes|no"}, "expected a Structure"),
        ({"structure": OBJECT, "ignore_eos": True}, "ignore_eos goes on past the end"),
        ({"response_format": {"type": "xml"}}, "one of .'text', 'json_object', 'json_schema'"),
        ({"response_format": {"type": "json_schema", "schema": {}}}, '"schema": ...'),
        ({"response_format": "json"}, "expected an object"),
    ],
)
def test_what_is_no_constraint_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        SamplingParams(**options)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("json_schema", "{", "is no JSON"),
        ("json_schema", "[1]", "a JSON schema is an object"),
        ("json_schema", {"a": object()}, "is no JSON"),
        ("choices", [], "expected one text or more"),
        ("choices", [1], "expected one text or more"),
        ("regex", "", "is no text"),
    ],
)
def test_a_structure_checks_what_it_can(kind: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        getattr(Structure, kind)(value)


IMPOSSIBLE = {
    "false": (Structure.json_schema(False), "schema is false"),
    "bounds": (Structure.json_schema({"type": "integer", "minimum": 3, "maximum": 2}), "minimum"),
    "types": (Structure.json_schema({"allOf": [{"type": "string"}, {"type": "null"}]}), "incompat"),
    "unknown": (Structure.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    "reference": (Structure.json_schema({"$ref": "#/nowhere"}), "nowhere"),
    "syntax": (Structure.regex("("), "unclosed group"),
    "nothing": (Structure.regex(r"[^\s\S]"), "no text satisfies it"),
    "no such rule": (Structure.grammar("start: foo"), "foo"),
    "not writable": (Structure.choices(["é"]), "no text satisfies it"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_constraint_that_nothing_satisfies_is_refused_before_it_runs(name: str) -> None:
    structure, words = IMPOSSIBLE[name]
    with pytest.raises(InvalidRequest, match=rf"the prompt: the {structure.kind} .*{words}"):
        make_sequences(
            target("llama"), small_tokenizer(), [[1]], SamplingParams(structure=structure)
        )


def test_deep_nesting_huge_enums_and_choices() -> None:
    deep: dict[str, Any] = {"const": 1}
    for _ in range(40):
        deep = {"type": "array", "items": deep, "minItems": 1, "maxItems": 1}
    assert written(Structure.json_schema(deep), "[" * 40 + "1" + "]" * 40)
    assert not written(Structure.json_schema(deep), "[" * 39 + "1" + "]" * 39)
    words = [f"a{number}b" for number in range(3000)]
    for structure, text in (
        (Structure.choices(words), "a{}b"),
        (Structure.json_schema({"enum": words}), '"a{}b"'),
    ):
        assert written(structure, text.format(2999))
        assert not written(structure, text.format(3000))
    assert written(Structure.choices(["ab", "abcd"]), "ab")  # one that another begins with


def test_where_a_grammar_leads_nowhere_that_row_ends_and_its_neighbours_go_on() -> None:
    """What cannot be written shows only on the way; so does what is too much for the parser."""
    structures = [Structure.choices(["abé"]), Structure.choices(["cab"]), None]
    options = [SamplingParams(structure=one, max_tokens=8, seed=1) for one in structures]
    batch = batch_generate(target("llama"), small_tokenizer(), [[1, 2]] * 3, sampling=options)
    dead, right, free = batch.results
    assert dead.finish_reason == "error"
    assert "the constraint cannot be followed after" in str(dead.error)
    assert (right.text, right.finish_reason) == ("cab", "stop")
    assert free.error is None
    assert free.generation_tokens > 1


def test_a_constraint_that_takes_too_much_ends_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """An automaton that grows with every letter."""
    monkeypatch.setitem(compiler._LIMITS, "max_lexer_states", 20)
    structures = [Structure.regex("[ab]*a[ab]{26}"), None]
    options = [SamplingParams(structure=one, max_tokens=30, seed=1) for one in structures]
    batch = batch_generate(target("llama"), small_tokenizer(), [[1, 2]] * 2, sampling=options)
    dear, free = batch.results
    words = r"cannot be followed after \d tokens: lexer error: too many states: 20 >= 20$"
    assert re.search(words, str(dear.error))
    assert free.error is None


class PythonTokenizer:
    """The small one as if it were written in Python: no tokenizer.json behind it."""

    eos_token_id, eos_token_ids, bos_token_id = END, frozenset({END}), None

    def __init__(self, shift: int = 0) -> None:
        self._own, self._shift = small_tokenizer(), shift
        vocabulary = self._own.backend_tokenizer.get_vocab()
        self.all_special_ids = [n for token, n in vocabulary.items() if token.startswith("<")]

    def get_vocab(self) -> dict[str, int]:
        vocabulary = self._own.backend_tokenizer.get_vocab()
        return {token: (n + self._shift) % VOCABULARY for token, n in vocabulary.items()}

    def encode(self, text: str, **_: Any) -> list[int]:
        return self._own.encode(text)


def test_a_tokenizer_without_a_file_of_its_own_is_read_by_its_vocabulary() -> None:
    written_in_python, tokenizer = PythonTokenizer(), small_tokenizer()
    for constraint in constraints(20):
        guides = [guide_of(constraint.structure, one) for one in (written_in_python, tokenizer)]
        for _ in range(12):
            own, other = (fill_masks([guide], [[]]).words for guide in guides)
            assert (own == other).all()
            assert guides[0].forced(4) == guides[1].forced(4)
            token = int(np.flatnonzero(np.unpackbits(own.view(np.uint8), bitorder="little"))[-1])
            if token == END:
                break
            for guide in guides:
                guide.follow([*guide._followed, token])


def test_tokens_whose_bytes_are_not_known_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="bytes of this PythonTokenizer's tokens are not know"):
        guide_of(OBJECT, PythonTokenizer(shift=1))


def test_options_that_leave_nothing_of_a_constraint_say_so() -> None:
    options = SamplingParams(structure=Structure.choices(["ab"]), min_tokens=9)
    (result,) = batch_generate(target("llama"), small_tokenizer(), [[1]], sampling=options).results
    assert "forbids what the structure leaves" in str(result.error)


def test_a_text_that_is_cut_says_so_and_stops_are_ends() -> None:
    options = [
        SamplingParams(structure=Structure.choices(["abcdabcd"]), max_tokens=2),
        SamplingParams(structure=Structure.choices(["abcdpop"]), stop="p"),
    ]
    cut, stopped = batch_generate(
        target("llama"), small_tokenizer(), [[1]] * 2, sampling=options
    ).results
    assert cut.finish_reason == "length"
    assert (stopped.text, stopped.finish_reason) == ("abcd", "stop")


def test_a_model_padded_to_more_tokens_than_the_tokenizer_has() -> None:
    model = make_model("llama", vocab_size=VOCABULARY + 40)
    options = SamplingParams(structure=Structure.regex("[a-d]{9}"), temperature=1.0, seed=3)
    (result,) = batch_generate(model, small_tokenizer(), [[1, 2]], sampling=options).results
    assert re.fullmatch("[a-d]{9}", result.text)


def test_unicode_through_the_embedded_pair() -> None:
    model, tokenizer = load("demo")
    text = 'ünïcode "€" 😀'
    structures = [Structure.choices([text]), Structure.json_schema(ANN), Structure.json_schema({})]
    with BatchedMLXGenerator(model, tokenizer, draft_model=load("demo-draft")) as generator:
        streams = [generator.submit("def f(", structure=one, max_tokens=60) for one in structures]
        with pytest.raises(InvalidRequest, match="schema is false"):
            generator.submit("x", structure=Structure.json_schema(False))
        texts = [stream.result() for stream in streams]
    assert texts[0].text == text
    assert texts[0].drafted > 0
    assert isinstance(json.loads(texts[1].text)["age"], int)


def test_flags(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(ANN), encoding="utf-8")
    written_out = Flags(json_schema=json.dumps(ANN))
    for name in (f"@{tmp_path}/s.json", f"{tmp_path}/s.json"):
        assert Flags(json_schema=name).structure == written_out.structure
        assert Flags(json_schema=name).identity() == written_out.identity()
    assert Flags(choices=("a", "b")).sampling.structure == Structure.choices(["a", "b"])
    assert Flags(regex="a+").sampling.structure == Structure.regex("a+")
    assert Flags(grammar='start: "a"').sampling.structure == Structure.grammar('start: "a"')
    with pytest.raises(InvalidRequest, match="--json-schema and --regex given"):
        Flags(json_schema="{}", regex="a")
    with pytest.raises(InvalidRequest, match=r"--grammar no\.lark: No such file"):
        Flags(grammar="no.lark")


def test_a_record_brings_its_own() -> None:
    names = ("json_schema", "choices", "regex")
    assert sampling_of({"json_schema": ANN}, names) == {"structure": Structure.json_schema(ANN)}
    assert sampling_of({"choices": '["a"]'}, names) == {"structure": Structure.choices(["a"])}
    assert sampling_of({"regex": "", "choices": None}, names) == {}
    for fields, words in [
        ({"json_schema": "{"}, "field 'json_schema' holds"),
        ({"choices": 3}, "field 'choices' holds"),
        ({"regex": ["a"]}, "expected a text"),
        ({"regex": "a", "choices": ["a"]}, "one says what the text is"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            sampling_of(fields, names)


def test_the_stage_asks_for_a_schema() -> None:
    stage = StructureText(schema=json.dumps(ANN), schema_field="schema")
    for fields, schema in (({}, ANN), ({"schema": {"const": 1}}, {"const": 1})):
        asked = stage.prepare({"text": "Ann is 30.", **fields})
        assert isinstance(asked, Generate)
        assert asked.sampling == {"structure": Structure.json_schema(schema)}
    answer = GenerationResult('{"name": "Ann", "age": 30}', [], 1, 1, "stop", 0.0, 0.0)
    assert stage.complete({}, answer).fields == {"value": {"name": "Ann", "age": 30}}
    with pytest.raises(InvalidRequest, match="before the JSON was whole"):
        stage.complete({}, replace(answer, finish_reason="length"))
    with pytest.raises(InvalidRequest, match="no schema in field 'schema'"):
        StructureText(schema_field="schema").prepare({"text": "x"})


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(InvalidRequest, match=r'pip install "mlx-spec\[structured\]"'):
        vocabulary.library()
    monkeypatch.setattr(vocabulary, "available", lambda: False)
    monkeypatch.setattr("mlx_spec.pipeline.stages.structure.available", lambda: False)
    with pytest.warns(UserWarning, match=r"mlx-spec\[structured\]"):
        stage = StructureText()
    asked = stage.prepare({"text": "x"})
    assert isinstance(asked, Generate)
    assert asked.sampling == {}
