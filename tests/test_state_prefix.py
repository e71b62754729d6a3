"""States of beginnings: kept where pieces and prompts end; the same tokens cold and warm."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.prefix import PrefixCache
from mlx_spec.cache.span import Span
from mlx_spec.cache.state import StateCache
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.fakes import KnowingDrafter, RaggedPolicy
from tests.models import VOCABULARY
from tests.scenario import mlx_lm_greedy
from tests.test_state import model_of

# Recurrences alone, and beside keys and values that can be cut anywhere.
FAMILIES = ("mamba2", "lfm2")
SYSTEM = [(5 * n + 1 + n * n) % VOCABULARY for n in range(41)]
OTHER = [(3 * n + 11) % VOCABULARY for n in range(41)]
# How much of which beginning, and how many tokens of its own.
SHARES = ((SYSTEM, 41, 4), (SYSTEM, 41, 9), (SYSTEM, 40, 1), (OTHER, 33, 14), (OTHER, 35, 6))


@cache
def prompts() -> list[list[int]]:
    return [
        beginning[:shared] + [(7 * i + 3 * n + n * n) % VOCABULARY for n in range(own)]
        for i, (beginning, shared, own) in enumerate(SHARES)
    ]


@cache
def texts(family: str) -> list[list[int]]:
    """What mlx-lm says, prompts in front."""
    return [[*p, *mlx_lm_greedy(model_of(family), tuple(p), 12)] for p in prompts()]


def reusing(family: str, piece: int, block: int, **options: Any) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        model_of(family),
        drafter=KnowingDrafter(texts(family), 0.6, VOCABULARY),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(
            batch_size=3,
            prefill_step_size=piece,
            prefill_interleave=options.pop("interleave", piece),
            block_size=block,
            prefix_cache_bytes=1 << 24,
        ),
        **options,
    )


def read_twice(family: str, piece: int, block: int, **options: Any) -> list[list[Sequence]]:
    """Five requests in three slots over one decoder, and all of them again."""
    decoder = reusing(family, piece, block, **options)
    rounds = []
    for _ in range(2):
        limit = SamplingParams(max_tokens=12)
        todo = [Sequence(prompt, limit, index=i) for i, prompt in enumerate(prompts())]
        rounds.append(list(todo))
        while todo or decoder.busy:
            if todo and decoder.free_rows:
                decoder.add([todo.pop(0)])
            decoder.step()
    return rounds


def wrong_rows(family: str, rounds: list[list[Sequence]]) -> list[int]:
    return [
        s.index for made in rounds for s in made if s.prompt + s.tokens != texts(family)[s.index]
    ]


@pytest.mark.parametrize(("piece", "block"), [(16, 8), (8, 8), (32, 16)])
@pytest.mark.parametrize("family", FAMILIES)
def test_cold_and_warm_give_the_same_tokens(family: str, piece: int, block: int) -> None:
    cold, warm = read_twice(family, piece, block)
    assert wrong_rows(family, [cold, warm]) == []
    assert sum(s.reused for s in cold) > 0  # one of several that came together
    # All that lies before the last cut of each prompt, which is where it lies in any traffic.
    for row in warm:
        assert row.reused >= (len(row.prompt) - 2) // piece * piece


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_taken_over_is_what_a_lone_row_holds(family: str) -> None:
    assert wrong_rows(family, read_twice(family, 8, 8, debug=True)) == []


def of_another_row(patch: pytest.MonkeyPatch) -> None:
    """The checkpoint of another prefix: that of the row in slot 0."""
    right = StateCache.save

    def save(self: StateCache, slot: int, begin: int, end: int) -> RowState:
        return right(self, 0, begin, end)

    patch.setattr(StateCache, "save", save)


def of_another_beginning(patch: pytest.MonkeyPatch) -> None:
    """What is found is what was stored last, whatever it is of."""
    right = PrefixCache.read

    def read(self: PrefixCache, text: Any) -> list[RowState]:
        states = right(self, text)
        last = next(reversed(self._kept.values())).state
        return [*states[:-1], last]

    patch.setattr(PrefixCache, "read", read)


def of_another_length(patch: pytest.MonkeyPatch) -> None:
    """The first of a prompt's checkpoints instead of the last."""
    right = StateCache.load
    patch.setattr(
        StateCache, "load", lambda self, slot, begin, states: right(self, slot, begin, states[:1])
    )


@pytest.mark.parametrize("plant", [of_another_row, of_another_beginning, of_another_length])
def test_planted_bugs_are_seen(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert wrong_rows("mamba2", read_twice("mamba2", 16, 8))


def passes_beside_a_row(
    decoder: SpeculativeDecoder, prompts: Seq[Seq[int]], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, ...]]:
    """Shapes of the passes that read prompts while a row decodes."""
    decoder.add([Sequence([7, 9], SamplingParams(max_tokens=40))])
    for _ in range(3):
        decoder.step()
    shapes: list[tuple[int, ...]] = []
    right = ModelRunner.forward

    def forward(self: ModelRunner, rows: Rows) -> mx.array:
        if not rows.tentative:
            shapes.append(rows.tokens.shape)
        return right(self, rows)

    monkeypatch.setattr(ModelRunner, "forward", forward)
    decoder.add([Sequence(list(prompt), SamplingParams(max_tokens=2)) for prompt in prompts])
    while decoder.busy:
        decoder.step()
    return shapes


def test_nobody_waits_for_what_will_not_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that end before the first place where one is looked at are read together."""
    shapes = passes_beside_a_row(reusing("lfm2", 32, 8), [SYSTEM[:13], SYSTEM[:14]], monkeypatch)
    assert shapes == [(2, 13)]


def test_a_row_is_looked_at_before_it_is_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces could be read between two steps."""
    decoder = reusing("lfm2", 8, 8, interleave=32)
    assert passes_beside_a_row(decoder, [SYSTEM], monkeypatch) == [(1, 8)] * 5
    # And at its end, where a next turn goes on.
    assert len(decoder._members.feeder._shared._cache) == 5
    again = Sequence(SYSTEM, SamplingParams(max_tokens=2))
    decoder.add([again])
    while decoder.busy:
        decoder.step()
    assert again.reused == 40


def test_figures_that_other_threads_ask_for_describe_nothing() -> None:
    """Stops arrays on the stream of who asks in mid-step: no step could compute them."""
    states = StateCache(1)
    pool = KVCachePool([states], 3)
    states.resize(3, 8)
    states.bind(Span(0, 2, mx.zeros(2, mx.int32), 1, 1))
    states[0] = mx.ones((2, 4))
    pool.slots = 3
    assert (pool.nbytes, pool.nbytes_by_kind["states"], pool.cost.fixed) == (48, 48, 16)
    assert states._changed
    assert sum(array.nbytes for array in states.arrays) == pool.nbytes == 48
