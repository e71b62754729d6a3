"""A newcomer's long prompt is fed between steps, to the target and to the drafter.

What one step adds for it is counted in tokens: that bounds the pause in the running rows' streams.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.batching.engine import Engine
from mlx_spec.batching.stream import BatchStream
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.decoding import feeding
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import MAX_RIDE, ModelDrafter
from mlx_spec.events import Event, PromptProgress
from mlx_spec.model import pace
from mlx_spec.model.pace import Chunk
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.models import VOCABULARY, make_model
from tests.scenario import plain_alone, target

INTERLEAVE, STEP_SIZE, ROWS = 32, 64, 4


@dataclass
class Fed:
    """Tokens fed: to the target by pass, to the draft by step that drafts."""

    target: list[int] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)

    def watch(self, decoder: SpeculativeDecoder) -> None:
        feeder = decoder._members.feeder
        read = feeder._read

        def counting(*args: Any) -> Rows:
            rows = read(*args)
            self.target.append(rows.tokens.size)
            return rows

        feeder._read = counting  # type: ignore[method-assign]


class CountingDrafter(ModelDrafter):
    """Notes what it reads before each step."""

    def __init__(self, fed: Fed, *args: Any) -> None:
        super().__init__(*args)
        self._fed = fed

    def feed(self, flying: int) -> Chunk | None:
        chunk = super().feed(flying)
        self._fed.draft.append(chunk.tokens if chunk else 0)
        return chunk


def make_decoder(fed: Fed, length: int = 3, rows: int = ROWS) -> SpeculativeDecoder:
    """The target drafts for itself: every guess is right if its cache is."""
    runner = ModelRunner(target("llama"), rows)
    batching = BatchingConfig(
        batch_size=rows, prefill_step_size=STEP_SIZE, prefill_interleave=INTERLEAVE
    )
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=CountingDrafter(fed, runner, batching),
        policy=FixedDraftLength(length),
        batching=batching,
    )
    fed.watch(decoder)
    return decoder


def operations(arrays: Seq[mx.array]) -> int:
    """How many that these depend on nobody has asked MLX to compute yet."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return graph.getvalue().count("shape=rectangle")


def uncomputed(decoder: SpeculativeDecoder) -> int:
    """The same of the caches of all models."""
    return sum(operations(runner.pool.arrays) for runner in decoder.runners)


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def right(sequence: Sequence) -> bool:
    alone = plain_alone(target("llama"), tuple(sequence.prompt), sequence.sampling)
    return sequence.tokens == alone


def test_a_long_prompt_never_takes_more_than_its_share_of_a_step() -> None:
    fed = Fed()
    decoder = make_decoder(fed)
    running = [Sequence(prompt(5 + i, i), SamplingParams(max_tokens=300)) for i in range(2)]
    decoder.add(running)
    for _ in range(3):
        decoder.step()
    fed.draft.clear()
    newcomers = [Sequence(prompt(n, n), SamplingParams(max_tokens=40)) for n in (200, 230)]
    decoder.add(newcomers)
    most = 0
    while not all(sequence.finish_reason for sequence in newcomers):
        alive = [len(sequence.tokens) for sequence in running]
        fed.target.clear()
        decoder.step()
        assert all(len(s.tokens) > n for s, n in zip(running, alive, strict=True)), "a pause"
        most = max(most, sum(fed.target))
    assert most == INTERLEAVE
    assert max(fed.draft) == INTERLEAVE
    assert sum(fed.draft) >= 200 + 230 - 2 * MAX_RIDE
    while decoder.busy:
        decoder.step()
    assert all(right(sequence) for sequence in [*running, *newcomers])


def test_many_newcomers_at_once_do_not_add_up() -> None:
    """Groups of rows fed one after the other share the one chunk; stops a token a row each."""
    fed = Fed()
    decoder = make_decoder(fed, rows=32)
    running = Sequence(prompt(5, 0), SamplingParams(max_tokens=200))
    decoder.add([running])
    decoder.step()
    # Neighbours of similar length are fed together: 20 tokens, which leaves 12 for 8 rows.
    lengths = [2] * 20 + [60] * 8
    newcomers = [Sequence(prompt(n, n), SamplingParams(max_tokens=5)) for n in lengths]
    decoder.add(newcomers)
    while not all(sequence.finish_reason for sequence in newcomers):
        fed.target.clear()
        decoder.step()
        assert sum(fed.target) <= INTERLEAVE
    assert all(right(sequence) for sequence in newcomers[-3:])


@pytest.mark.parametrize("lengths", [(90, 7, 60, 8), (30, 31, 120, 33), (5, 100, 6, 100)])
def test_a_text_read_bit_by_bit_is_read_right(lengths: tuple[int, ...]) -> None:
    """Once a row is covered, all its drafts are accepted: its cache holds what it should."""
    decoder = make_decoder(Fed())
    sequences: list[Any] = [
        Sequence(prompt(n, i), SamplingParams(max_tokens=20 + i)) for i, n in enumerate(lengths)
    ]
    decoder.add(sequences[:2])
    for _ in range(2):
        decoder.step()
    decoder.add(sequences[2:])
    while decoder.busy:
        decoder.step()
    assert all(right(sequence) for sequence in sequences)
    assert all(sequence.accepted == sequence.drafted > 0 for sequence in sequences)


@pytest.mark.parametrize("lengths", [(400,), (400, 5, 300)])
def test_what_is_read_in_a_step_is_computed_in_it(lengths: tuple[int, ...]) -> None:
    """While no row is covered nothing that a step emits depends on what the drafter read: left
    lazy, all of a long prompt would be computed in the one step that covers the row.
    """
    fed = Fed()
    decoder = make_decoder(fed)
    decoder.add([Sequence(prompt(n, n), SamplingParams(max_tokens=30)) for n in lengths])
    uncovered = 0
    while decoder.busy:
        decoder.step()
        assert uncomputed(decoder) == 0
        uncovered += fed.draft[-1:] == [STEP_SIZE]
    assert uncovered > 3
    assert max(fed.draft) == STEP_SIZE


def test_while_nobody_waits_more_is_read_at_once() -> None:
    fed = Fed()
    decoder = make_decoder(fed)
    decoder.add([Sequence(prompt(200, 1), SamplingParams(max_tokens=40))])
    while decoder.busy:
        decoder.step()
    assert max(fed.draft) == STEP_SIZE
    # All but the pending token, and what plain steps meanwhile added.
    assert 200 - MAX_RIDE <= sum(fed.draft) <= 200 + len(fed.draft)


def test_rows_that_never_speculate_never_pay_for_the_draft() -> None:
    fed = Fed()
    decoder = make_decoder(fed, length=0)
    decoder.add([Sequence(prompt(100, 1), SamplingParams(max_tokens=10))])
    while decoder.busy:
        decoder.step()
    assert sum(fed.target) == 99
    assert fed.draft == []


# --- where nobody decodes: everybody has a turn ------------------------------------------------


def begun(count: int, rows: Rows) -> ModelRunner:
    """A runner with one pass built."""
    runner = ModelRunner(deep(), count)
    runner.pool.acquire(count)
    runner.pool.reserve(rows.limit)
    runner.begin(rows)
    return runner


@cache
def deep() -> Any:
    return make_model("llama", num_hidden_layers=12)


def test_a_pass_is_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops Ctrl-C, a cancel or a newcomer from waiting for a whole pass over a long prompt."""
    monkeypatch.setattr(pace, "PIECE", 0.0)  # a fast machine would take all layers at once
    tokens = mx.array([prompt(64, 1), prompt(64, 2)], mx.int32)
    rows = Rows(tokens, mx.zeros(2, mx.int32), 64, uniform=True)
    runner, whole = begun(2, rows), begun(2, rows)
    for layer in range(12):
        lazy = [operations(layer.arrays) > 0 for layer in runner.pool.layers]
        assert lazy == [False] * layer + [True] * (12 - layer)
        assert runner.unread == 128 * (12 - layer) // 12
        assert runner.proceed(0.0) == (layer == 11)
    mx.eval(whole.pool.arrays)
    for ours, theirs in zip(runner.pool.arrays, whole.pool.arrays, strict=True):
        assert mx.array_equal(ours, theirs)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where the layer of a pass takes longer than anybody's turn."""
    monkeypatch.setattr(pace, "PIECE", 0.0)
    monkeypatch.setattr(pace, "LAUNCHED", 1)
    monkeypatch.setattr(feeding, "TURN", 0.0)


def alone(sequence: Sequence) -> bool:
    return sequence.tokens == plain_alone(deep(), tuple(sequence.prompt), sequence.sampling)


@pytest.mark.usefixtures("slow")
def test_newcomers_and_cancels_have_their_turn_within_a_pass() -> None:
    """They come and go between layers of others' prompts, and nobody's text suffers."""
    batching = BatchingConfig(batch_size=4, prefill_step_size=32)
    engine = Engine(deep(), None, batching=batching)
    requests: list[Sequence] = []
    for step in range(40):
        if step in (0, 5, 17, 23, 30):
            requests.append(Sequence(prompt(70 + step, step), SamplingParams(max_tokens=6)))
            engine.submit(requests[-1])
        if step == 20:
            engine.cancel(requests[0])
        engine.step(hurry=True)
        fed, total = engine.decoder.prompt_progress
        assert 0 <= fed <= total
    while engine.busy:
        engine.step(hurry=True)
    assert [request.finish_reason for request in requests] == ["cancelled"] + ["length"] * 4
    assert all(alone(request) for request in requests[1:])


@pytest.mark.usefixtures("slow")
def test_listeners_hear_how_far_prompts_are_read() -> None:
    events: list[Event] = []
    batching = BatchingConfig(batch_size=2, prefill_step_size=32)
    engine = Engine(deep(), None, batching=batching, listeners=[events.append])
    engine.submit(Sequence(prompt(97, 3), SamplingParams(max_tokens=2)))
    while engine.busy:
        engine.step(hurry=True)
    told = [(e.fed, e.total) for e in events if isinstance(e, PromptProgress)]
    assert {total for _, total in told} == {96}
    fed = [fed for fed, _ in told]
    # 32 tokens at once, computed layer by layer.
    assert fed == sorted(fed)
    assert fed[-1] == 96
    assert len(fed) == len(set(fed)) > 30


@pytest.mark.usefixtures("slow")
def test_closing_does_not_wait_for_a_pass() -> None:
    """Not even where rows decode, whose next step needs it."""
    engine = Engine(deep(), None, batching=BatchingConfig(batch_size=4))
    requests = [
        Sequence(prompt(5, 1), SamplingParams(max_tokens=300)),
        Sequence(prompt(300, 2), SamplingParams(max_tokens=6)),
    ]
    engine.submit(requests[0])
    for _ in range(20):
        engine.step(hurry=True)
    emitted = len(requests[0].tokens)
    engine.submit(requests[1])
    asked = 0

    def closing() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    engine.decoder.stop_when(closing)
    while asked <= 3:
        engine.step(hurry=True)
    runner = engine.decoder.runner
    assert operations(runner.pool.arrays) > 0
    assert engine.step(hurry=True) == []
    for request in requests:
        engine.cancel(request)
    assert not engine.busy
    assert runner.pool.nbytes == 0
    assert len(requests[0].tokens) <= emitted + 1


@pytest.mark.usefixtures("slow")
def test_ctrl_c_is_heard_within_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the stream goes on, or ends, as its owner likes."""
    evaluate, calls = mx.eval, 0

    def interrupted(*arrays: Any) -> None:
        nonlocal calls
        calls += 1
        evaluate(*arrays)
        if calls == 7:
            raise KeyboardInterrupt

    sequence = Sequence(prompt(90, 3), SamplingParams(max_tokens=4))
    stream = BatchStream(Engine(deep(), None), [sequence])
    monkeypatch.setattr(pace.mx, "eval", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    monkeypatch.undo()
    assert calls == 7
    stream.close()
    assert stream.result().results[0].finish_reason == "cancelled"
