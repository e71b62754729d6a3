"""What a constraint forces is drafted though nobody asked for drafts; other rows pay nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.batching.engine import Engine
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig, Structure
from mlx_spec.control.ration import Ration
from mlx_spec.decoding import members
from mlx_spec.decoding.drafters.none import NoDraft
from mlx_spec.decoding.rules.base import LogitsRule
from mlx_spec.decoding.rules.grammar import GrammarRule
from mlx_spec.decoding.rules.processors import Processors
from mlx_spec.model.pass_timing import PassTimer
from mlx_spec.sequence import Sequence
from mlx_spec.structured.compiler import guide_of
from tests.scenario import target
from tests.structures import END, small_tokenizer

Patch = pytest.MonkeyPatch

A, B = 1, 2  # tokens
# Mostly forced: names of keys, and what stands between values.
PERSON = Structure.json_schema(
    {
        "type": "object",
        "properties": {
            "a": {"enum": ["aida", "bob", "dido"]},
            "born": {"type": "integer", "minimum": 10, "maximum": 99},
            "alone": {"type": "boolean"},
        },
        "required": ["a", "born", "alone"],
        "additionalProperties": False,
    }
)
SHAPED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    {"repetition_penalty": 1.3, "logit_bias": {A: 40.0, B: 30.0}, "presence_penalty": 60.0},
    {"temperature": 0.7, "seed": 4, "min_tokens": 9, "frequency_penalty": 0.4},
]


def rows() -> list[Sequence]:
    """Every other one has a constraint; all kinds of options among both."""
    made = []
    for index in range(8):
        structure = PERSON if index % 2 else None
        options = SHAPED[index // 2]
        if structure is not None:  # an end that is kept from it would be no end of the constraint
            options = {name: value for name, value in options.items() if name != "min_tokens"}
        sampling = SamplingParams(
            max_tokens=60 if index % 2 else 24, structure=structure, **options
        )
        prompt = [3 + index, *range(5, 5 + index)]
        made.append(Sequence(prompt, sampling, stop_ids=frozenset({END}), index=index))
        if structure is not None:
            made[-1].guide = guide_of(structure, small_tokenizer())
    return made


def engine_of(family: str = "llama", size: int = 4, **options: Any) -> Engine:
    return Engine(
        target(family),
        small_tokenizer(),
        batching=BatchingConfig(batch_size=size),
        speculation=SpeculationConfig(**options) if options else None,
    )


def run(engine: Engine, made: list[Sequence]) -> list[list[int]]:
    """All of them, one after the other as rows become free."""
    engine.submit(*made)
    while engine.busy:
        engine.step(hurry=True)
    assert [row.error for row in made] == [None] * len(made)
    return [row.tokens for row in made]


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: Patch) -> None:
    """How often plain neighbours wait for guesses is told by a clock (``test_given_guesses``)."""
    monkeypatch.setattr(Ration, "most", lambda self, rows, offered: offered)


@cache
def plainly() -> list[list[int]]:
    engine = engine_of(enabled=False)
    assert isinstance(engine.decoder.drafter, NoDraft)
    said = run(engine, rows())
    assert engine.decoder.meter.drafted == 0
    return said


def guided(made: list[Sequence]) -> list[Sequence]:
    return [row for row in made if row.guide is not None]


def test_forced_tokens_are_drafted_by_default() -> None:
    """Same texts; rows with a constraint take fewer steps, the others none with a guess."""
    engine, made = engine_of(), rows()
    assert run(engine, made) == plainly()
    for row in made:
        assert (row.drafted > 0) is (row.guide is not None)
        assert set(row.drafters) <= {"forced"}
    own = guided(made)
    drafted, accepted = (sum(getattr(row, n) for row in own) for n in ("drafted", "accepted"))
    assert accepted > 60
    assert accepted > 0.8 * drafted
    assert sum(row.steps for row in own) < 0.7 * sum(len(row.tokens) for row in own)


def test_nobody_s_pass_is_wider_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass holds each row's token and the guesses there are, and so does what is sampled. (A
    first step that reads prompts, too, chooses as in a rectangle: there is none here.)"""
    monkeypatch.setattr(members, "MOST_TOKENS", 0)
    engine, made = engine_of(), rows()
    chosen: list[int] = []
    state = engine.decoder._state
    operation = state.operation

    def counting(logits: mx.array, *rest: Any, **more: Any) -> Any:
        chosen.append(logits.shape[0] * logits.shape[1])
        return operation(logits, *rest, **more)

    state.operation = counting
    run(engine, made)
    meter = engine.decoder.meter
    assert meter.computed == meter.row_steps + meter.drafted
    assert meter.packed > 0
    dropped = sum(chosen) - meter.computed  # a plain step that was built ahead for nothing
    assert dropped in range(2 * 4 + 1)
    assert meter.rectangles - meter.computed > 60


def test_steps_without_a_constraint_are_built_ahead() -> None:
    """And with none at all in the batch everything is as without a drafter."""
    counts = []
    for options in ({}, {"enabled": False}):
        engine = engine_of(**options)
        run(engine, [row for row in rows() if row.guide is None])
        meter = engine.decoder.meter
        counts.append((meter.steps, meter.ahead, meter.computed, meter.drafted))
    assert counts[0] == counts[1]
    assert counts[0][1] > 0


def test_where_passes_are_rectangles_neighbours_are_not_widened() -> None:
    """A state folds tokens in: beside plain rows nothing is drafted, alone it is."""
    together, made = engine_of("qwen3_next"), rows()
    run(together, made)
    mixed = together.decoder.meter
    assert mixed.computed == mixed.rectangles
    assert all(row.drafted == 0 for row in made if row.guide is None)
    for size in (1, 2):
        engine = engine_of("qwen3_next", size=size)
        own = guided(rows())
        assert run(engine, own) == [row.tokens for row in guided(made)]
        assert sum(row.accepted for row in own) > 0


def test_nothing_is_timed_for_it(monkeypatch: Patch) -> None:
    """A batch of few rows has no pause for a table of passes that nobody asked for."""
    monkeypatch.setattr(PassTimer, "time", lambda *_: pytest.fail("timed"))
    run(engine_of(), rows())


def test_each_row_takes_the_bytes_of_its_own_guesses() -> None:
    engine, made = engine_of(num_draft_tokens=5), rows()
    engine.submit(*made)
    assert [row.guesses for row in made] == [5 if row.guide is not None else 0 for row in made]
    kv, fits = engine.memory.budget.kv, engine.memory.budget.fits
    assert kv.token_bytes > 0
    tokens = [row.reserved for row in made[:2]]
    both = kv.nbytes(tokens, [0, 5])
    assert both - kv.slot_bytes(tokens, [0, 5]) == 7 * kv.token_bytes
    engine.memory.budget = replace(engine.memory.budget, kv=replace(kv, limit=both - 1))
    assert not engine.memory.budget.fits(tokens, [0, 5])
    assert engine.memory.budget.fits(tokens, [0, 4])
    assert fits(tokens, [0, 5])


def test_a_batch_of_plain_rows_is_as_large_as_without() -> None:
    """Memory for three plain rows holds three; a constraint takes what its own guesses need."""
    running = []
    for kind in (0, 1):
        engine = engine_of(size=8)
        one = [row for row in rows() if (row.guide is not None) is bool(kind)]
        whole = engine.memory.budget.kv.nbytes([90] * 3, [0] * 3)
        engine.memory.budget = replace(
            engine.memory.budget, kv=replace(engine.memory.budget.kv, limit=whole)
        )
        engine.scheduler.budget = engine.memory.budget
        engine.submit(*one)
        engine.step(hurry=True)
        running.append(engine.scheduler.active)
        while engine.busy:
            engine.step(hurry=True)
            assert engine.kv_usage().total <= whole
    assert running[0] >= 3 > running[1] >= 1


# --- planted bugs --------------------------------------------------------------------------------


def masks_of_the_first_place(patch: Patch) -> None:
    """Every token of a packed pass is masked as its row's first."""
    right = GrammarRule.of_tokens

    def planted(self: GrammarRule, packing: TokenPacking) -> GrammarRule:
        return right(self, replace(packing, columns=tuple(0 for _ in packing.columns)))

    patch.setattr(GrammarRule, "of_tokens", planted)


def options_of_the_first_row(patch: Patch) -> None:
    """Processors give every token the first row's options."""
    right = Processors.of_tokens

    def planted(self: Processors, packing: TokenPacking) -> Processors:
        made = right(self, packing)
        first = mx.zeros((len(made.rows),), mx.int32)
        return replace(made, parts=tuple(part.taken(first) for part in made.parts))

    patch.setattr(Processors, "of_tokens", planted)


def processors_of_wrong_tokens(patch: Patch) -> None:
    """What rows want is done to the tokens of their numbers."""

    def planted(self: Processors, packing: TokenPacking) -> LogitsRule:
        return self

    patch.setattr(Processors, "of_tokens", planted)


def positions_of_the_rectangle(patch: Patch) -> None:
    """All tokens of a row are taken for its next one: what was guessed before is not seen."""
    from mlx_spec.decoding.rules.base import RuleContext

    right = RuleContext.of_tokens

    def planted(self: RuleContext, packing: TokenPacking) -> RuleContext:
        own = right(self, packing)
        return replace(own, positions=own.lengths[:, None])

    patch.setattr(RuleContext, "of_tokens", planted)


@pytest.mark.parametrize(
    "plant",
    [
        masks_of_the_first_place,
        options_of_the_first_row,
        processors_of_wrong_tokens,
        positions_of_the_rectangle,
    ],
)
def test_a_planted_bug_shows(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    wanted = plainly()
    plant(monkeypatch)
    engine, made = engine_of(), rows()
    engine.submit(*made)
    while engine.busy:
        engine.step(hurry=True)
    assert [row.tokens for row in made] != wanted
