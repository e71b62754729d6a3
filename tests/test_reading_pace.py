"""How much of a prompt is read between two steps: milliseconds, by what a token takes.

Seconds are made up: a model's pace is noted by the test, and never by the clock.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.chunk_size import ChunkSize
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import InvalidRequest
from mlx_spec.model import reading_pace
from mlx_spec.model.pace import AIM, FEWEST, Pace
from mlx_spec.model.reading_pace import ReadingPace, pace_of
from mlx_spec.sequence import Sequence
from tests.models import make_model
from tests.scenario import plain_alone, target
from tests.test_long_prompts import prompt

NOTE = ReadingPace.note  # as this file is read: later nobody learns (conftest)
SMALL, LARGE = 10**6, 8 * 10**9


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is noted counts."""
    monkeypatch.setattr(ReadingPace, "note", NOTE)


def learnt(seconds: float, parameters: int = SMALL, passes: int = 2) -> ReadingPace:
    """A model whose tokens take so long."""
    pace = ReadingPace(parameters, Pace(1e12))
    for _ in range(passes):
        pace.note(100, 100 * seconds)
    return pace


# --- one model's pace ----------------------------------------------------------------------------


def test_before_anything_is_measured_the_first_chunk_is_small() -> None:
    pace = ReadingPace(LARGE, Pace(1e11))
    assert pace.piece(0.1, 2048) == FEWEST
    assert pace.chunk(0.1, 2048, FEWEST) == FEWEST


@pytest.mark.usefixtures("learning")
def test_a_chunk_takes_as_long_as_is_allowed() -> None:
    """In tokens: what the bound and the measured pace make of it, up or down, at once."""
    pace = learnt(0.001)
    assert pace.piece(0.1, 2048) == FEWEST
    assert [pace.chunk(bound, 2048, FEWEST) for bound in (0.1, 0.25, 10.0)] == [100, 250, 2048]
    for _ in range(3):
        pace.note(64, 64 * 0.0005)
    assert pace.chunk(0.1, 2048, FEWEST) == 200
    for _ in range(3):
        pace.note(64, 64 * 0.004)
    assert pace.chunk(0.1, 2048, FEWEST) == FEWEST


@pytest.mark.usefixtures("learning")
def test_one_slow_pass_says_nothing() -> None:
    """The first of its kind compiles kernels; another program ran meanwhile."""
    pace = learnt(0.001)
    pace.note(100, 5.0)
    assert pace.chunk(0.1, 2048, FEWEST) == 100
    first = ReadingPace(SMALL, Pace(1e12))
    first.note(100, 5.0)
    first.note(100, 0.1)
    assert first.seconds == pytest.approx(0.001)


@pytest.mark.usefixtures("learning")
def test_what_took_so_long_at_most_makes_nothing_slower() -> None:
    """A chunk whose end nobody saw: the host came later."""
    pace = learnt(0.001)
    for _ in range(5):
        pace.note(100, 3.0, exact=False)
    assert pace.seconds == pytest.approx(0.001)
    for _ in range(5):
        pace.note(100, 0.05, exact=False)
    assert pace.seconds == pytest.approx(0.0005)


@pytest.mark.usefixtures("learning")
def test_a_piece_is_kept_once_the_pace_is_known() -> None:
    """So that K/V do not depend on what else the machine did when a text came."""
    pace = ReadingPace(SMALL, Pace(2e10))
    guess = pace.piece(0.1, 2048)
    assert guess == 512
    pace.note(100, 100 * 0.0002)
    pace.note(100, 100 * 0.0002)
    assert pace.piece(0.1, 2048) == 256
    for _ in range(9):
        pace.note(100, 100 * 0.01)
    assert pace.piece(0.1, 2048) == 256
    assert pace.piece(0.1, 128) == 64  # another setting


@pytest.mark.usefixtures("learning")
def test_a_piece_that_takes_more_than_a_second_is_cut_all_the_same() -> None:
    """The last resort: a machine that has become much slower than it was."""
    pace = learnt(0.0001)
    assert pace.piece(0.1, 2048) == 512
    for _ in range(3):
        pace.note(100, 100 * 0.9 * AIM / 512)
    assert pace.chunk(0.1, 2048, 512) == 512
    for _ in range(5):
        pace.note(100, 100 * 2 * AIM / 512)
    assert pace.chunk(0.1, 2048, 512) == 256


@pytest.mark.usefixtures("learning")
def test_a_model_has_one_pace_while_it_is_alive() -> None:
    """Two engines of a model cut alike; another model at its address starts anew."""
    model, other = make_model("llama"), make_model("llama")
    pace = pace_of(model, 10)
    assert pace_of(model, 10) is pace
    assert pace_of(other, 10) is not pace
    known = len(reading_pace._KNOWN)
    del model
    gc.collect()
    assert len(reading_pace._KNOWN) < known


def test_the_bound_is_the_user_s() -> None:
    pace = ReadingPace(SMALL, Pace(2 * SMALL / 0.001))  # a millisecond a token
    assert ChunkSize(pace, BatchingConfig()).between_steps() == 100
    assert ChunkSize(pace, BatchingConfig(prefill_pause_ms=300)).between_steps() == 300
    assert ChunkSize(pace, BatchingConfig(prefill_pause_ms=300), 0.25).between_steps() == 75
    assert ChunkSize(pace, BatchingConfig(prefill_interleave=512)).between_steps() == 512
    assert ChunkSize(pace, BatchingConfig(prefill_interleave=5)).between_steps() == 5
    assert ChunkSize(pace, BatchingConfig()).between_steps(alone=True) == 1000
    for bad in (0.5, -1, "100", None, float("nan")):
        with pytest.raises(InvalidRequest, match="prefill_pause_ms"):
            BatchingConfig(prefill_pause_ms=bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="prefill_interleave"):
        BatchingConfig(prefill_interleave=0)


# --- in traffic ----------------------------------------------------------------------------------

PIECE = 16
Fed = dict[Sequence, list[tuple[int, int]]]


class FakePace:
    """A model whose tokens take what the test says; pieces of 16 tokens."""

    seconds = 1.0

    def piece(self, bound: float, most: int) -> int:
        return PIECE

    def chunk(self, bound: float, most: int, piece: int) -> int:
        return max(piece, int(bound / self.seconds))

    def note(self, tokens: int, seconds: float, *, exact: bool = True) -> None: ...


def running(**options: Any) -> tuple[SpeculativeDecoder, FakePace, Fed]:
    """Two rows that decode, the model's pace, and what is fed of each row."""
    pace = FakePace()
    batching = BatchingConfig(batch_size=4, block_size=4, **options)
    decoder = SpeculativeDecoder.__new__(SpeculativeDecoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_spec.model.runner.pace_of", lambda *_: pace)
        decoder.__init__(target("llama"), batching=batching)  # type: ignore[misc]
        assert decoder.runner.pace is pace  # kept
    fed: Fed = defaultdict(list)
    meter = decoder._members.feeder._meter
    meter.fed = lambda sequence, begin, end: fed[sequence].append(  # type: ignore[method-assign]
        (begin, end)
    )
    decoder.add([Sequence(prompt(n, n), SamplingParams(max_tokens=200)) for n in (5, 7)])
    for _ in range(3):
        decoder.step()
    return decoder, pace, fed


def newcomer(tokens: int = 4) -> Sequence:
    return Sequence(prompt(200, 9), SamplingParams(max_tokens=tokens))


def kv(decoder: SpeculativeDecoder, sequence: Sequence) -> list[mx.array]:
    """What a row's slot holds of its prompt."""
    slot = decoder._state.sequences.index(sequence)
    return decoder.runner.pool.save(slot, 0, len(sequence.prompt) - 1).flat


def test_running_rows_wait_for_as_many_pieces_as_fit() -> None:
    """By the step, 100 ms by default, while the pace changes; and where a text is cut does not."""
    decoder, pace, fed = running()
    late = newcomer()
    decoder.add([late])
    counts = []
    for each in (0.001, 0.001, 0.1, 0.002, 0.0005):
        pace.seconds, before = each, len(fed[late])
        alive = [len(row.tokens) for row in decoder.running[:2]]
        decoder.step()
        now = [len(row.tokens) for row in decoder.running[:2]]
        assert all(a < b for a, b in zip(alive, now, strict=True)), "a pause"
        counts.append(len(fed[late]) - before)
    # 100 ms are 100 tokens: six pieces of 16; then one at least; then 50 tokens: three.
    assert counts[:4] == [6, 6, 1, 0]
    assert fed[late] == [(b, min(b + PIECE, 199)) for b in range(0, 199, PIECE)]


@pytest.mark.parametrize("paces", [(1.0,), (0.003,), (0.001, 1.0, 0.002), (0.0001,)])
def test_kv_bits_are_the_same_whatever_is_read_between_two_steps(paces: tuple[float, ...]) -> None:
    """A text read alone and beside running rows, in any number of pieces a step."""
    lone, pace, _ = running()
    for row in lone.running:
        lone.remove(row)
    alone = newcomer(60)
    lone.add([alone])
    while not alone.tokens:
        lone.step()
    decoder, pace, fed = running()
    late = newcomer(60)
    decoder.add([late])
    turn = 0
    while not late.tokens:
        pace.seconds = paces[turn % len(paces)]
        turn += 1
        decoder.step()
    assert len(fed[late]) == 13
    for ours, theirs in zip(kv(decoder, late), kv(lone, alone), strict=True):
        assert mx.array_equal(ours, theirs)
    while not late.finish_reason:
        decoder.step()
    assert late.tokens == plain_alone(target("llama"), tuple(late.prompt), late.sampling)


@pytest.mark.usefixtures("learning")
def test_a_real_engine_learns_its_pace_and_keeps_its_piece() -> None:
    """By default: reading prompts tells, alone and beside rows that decode."""
    decoder = SpeculativeDecoder(make_model("llama"), batching=BatchingConfig(batch_size=3))
    pace = decoder.runner.pace
    guess = pace.seconds
    rows = [Sequence(prompt(600, n), SamplingParams(max_tokens=20)) for n in range(3)]
    decoder.add(rows[:1])
    while not rows[0].tokens:
        decoder.step()
    alone = pace._told
    assert alone > 0
    assert pace.seconds != guess
    decoder.add(rows[1:])
    while decoder.busy:
        decoder.step()
    assert pace._told > alone
    piece = decoder._members.feeder.size.piece
    assert list(pace._pieces.values()) == [piece]
