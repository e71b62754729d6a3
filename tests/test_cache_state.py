"""Whether the protocol serves caches that fold tokens into a state: a probe that counts tokens.

Nothing here is a kind that anybody runs. The probe keeps K/V for the model and beside them a number
a slot, how many tokens were folded into it, which can be neither cut nor read twice: each pass must
begin where the number stands, count a row's own tokens and no padding, and be committed to what
was accepted; a newcomer's first pass begins at 0, whoever held its slot before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache
from mlx_lm.models.llama import Model

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.layout import register
from mlx_spec.cache.span import Span
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.preemption import run_with_a_preemption
from tests.scenario import mlx_lm_greedy, noisy_draft, target


class Counted(KVCache):  # type: ignore[misc]
    """A model's own cache, which the probe stands for."""


class Probe:
    """K/V, and [slots + 1] int32: tokens folded for each row, and how often that was wrong."""

    sliceable, folds = False, False
    offset: mx.array

    def __init__(self) -> None:
        self.slots = self.positions = 0
        self.kv = DenseKVCache()
        self.counted = mx.zeros(1, mx.int32)

    def bind(self, span: Span) -> None:
        self.kv.bind(span)
        self.offset, self.make_mask = span.starts, self.kv.make_mask
        self.rows = slice(span.first, span.first + span.count)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        span = self.kv.span
        own = mx.full(span.starts.shape, span.width) if span.counts is None else span.counts
        newcomer = (span.starts == 0) & (own > 0)
        self.before, self.own = mx.where(newcomer, 0, self.counted[self.rows]), own
        wrong = ((own > 0) & (self.before != span.starts)).sum()
        self._set(self.rows, self.before + own, wrong)
        return self.kv.update_and_fetch(keys, values)

    def commit(self, kept: mx.array | None) -> None:
        if kept is not None:
            self._set(self.rows, self.before + mx.minimum(kept, self.own))

    def _set(self, slots: Any, counted: Any, wrong: Any = 0) -> None:
        new = copy.copy(self.counted)
        new[slots] = counted
        new[-1:] = new[-1:] + wrong
        self.counted = new

    def resize(self, slots: int, positions: int) -> None:
        kept, room = min(self.slots, slots), max(0, slots - self.slots)
        new = mx.zeros(room, mx.int32)
        self.counted = mx.concatenate([self.counted[:kept], new, self.counted[-1:]])
        self.slots, self.positions = slots, positions
        self.kv.resize(slots, positions)

    def move(self, sources: mx.array, slots: mx.array) -> list[mx.array]:
        moved = self.counted[sources]
        self._set(slots, moved)
        return [*self.kv.move(sources, slots), moved]

    def save(self, slot: int, begin: int, end: int) -> RowState:
        return RowState(parts=(self.kv.save(slot, begin, end),), note=end)

    def load(self, slot: int, begin: int, states: Seq[RowState]) -> None:
        self.kv.load(slot, begin, [state.parts[0] for state in states])
        self._set(slot, states[-1].note)

    def wipe(self, slot: int, begin: int) -> None:
        self.kv.wipe(slot, begin)

    @property
    def arrays(self) -> list[mx.array]:
        return [self.counted, *self.kv.arrays]

    @arrays.setter
    def arrays(self, arrays: list[mx.array]) -> None:
        self.counted, *self.kv.arrays = arrays

    @property
    def cost(self) -> RowCost:
        return self.kv.cost + RowCost(fixed=4)


class CountedLlama(Model):  # type: ignore[misc]
    def make_cache(self) -> list[Counted]:
        return [Counted() for _ in self.layers]


register(Counted, lambda own: Probe())


@cache
def counted_target() -> Any:
    model = CountedLlama(target("llama").args)
    model.update(target("llama").parameters())
    return model


def errors(decoder: SpeculativeDecoder, wrong: list[int]) -> int:
    """Rows whose tokens are wrong; how often a pass began elsewhere is appended to ``wrong``."""
    trim = decoder.runner.pool.trim

    def look() -> None:
        wrong.extend(int(layer.counted[-1].item()) for layer in decoder.runner.pool.layers)  # type: ignore[attr-defined]
        trim()

    decoder.runner.pool.trim = look  # type: ignore[method-assign]
    made = run_with_a_preemption(decoder, reusing=False)
    # Neighbours that are read together, padded.
    made += [Sequence([9 + n] * (20 + n), SamplingParams(max_tokens=4)) for n in (0, 3, 1)]
    decoder.add(made[-3:])
    while decoder.busy:
        decoder.step()
    look()
    return sum(
        row.tokens != mlx_lm_greedy(target("llama"), tuple(row.prompt), len(row.tokens))
        for row in made
    )


def make_decoder() -> SpeculativeDecoder:
    return SpeculativeDecoder(
        counted_target(),
        drafter=ModelDrafter(ModelRunner(noisy_draft("llama"), 3)),
        policy=RaggedPolicy(),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16, prefill_interleave=8),
    )


def test_every_pass_begins_where_the_last_one_was_committed() -> None:
    wrong: list[int] = []
    assert errors(make_decoder(), wrong) == 0
    assert wrong
    assert not any(wrong)


def nothing_committed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelRunner, "commit", lambda self, kept: None)


def padding_counted(patch: pytest.MonkeyPatch) -> None:
    """A row's padding as its own."""
    right = ModelRunner.forward

    def wrong(self: ModelRunner, rows: Rows) -> mx.array:
        return right(self, Rows(rows.tokens, rows.starts, rows.limit, rows.first, rows.uniform))

    patch.setattr(ModelRunner, "forward", wrong)


def one_too_many_committed(patch: pytest.MonkeyPatch) -> None:
    right = ModelRunner.commit
    patch.setattr(ModelRunner, "commit", lambda self, kept: right(self, kept + 1))


@pytest.mark.parametrize("plant", [nothing_committed, padding_counted, one_too_many_committed])
def test_planted_bugs_are_counted(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """K/V by position hide all of them: the tokens are right."""
    plant(monkeypatch)
    wrong: list[int] = []
    assert errors(make_decoder(), wrong) == 0
    assert any(wrong)
