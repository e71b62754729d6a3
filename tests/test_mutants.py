"""Planted bugs, each of which the exactness scenario must notice.

A test set that stays green under these proves nothing. Several of them pass at B = 1: that is
why every exactness test runs with more rows. Bugs that keep the output right but waste accepted
tokens (a lost bonus token, all-or-nothing acceptance) are caught by counting passes.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.span import Span
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.decoding import acceptance
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.fakes import CorruptingDrafter, RaggedPolicy, every_fifth
from tests.models import VOCABULARY
from tests.scenario import make_jobs, noisy_draft, run_jobs, target, wrong_rows

Patch = pytest.MonkeyPatch


def run(rows: int, sampled: bool) -> list[int]:
    """Requests that come out wrong in the scenario of ``test_exactness``."""
    jobs = make_jobs("llama", sampled, 2 * rows + 1)
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=ModelDrafter(ModelRunner(noisy_draft("llama"), rows)),
        policy=RaggedPolicy(),
        batching=BatchingConfig(batch_size=rows, prefill_step_size=16),
    )
    return wrong_rows(jobs, run_jobs(decoder, jobs))


def shared_offset(patch: Patch) -> None:
    """Row 0's position is used for all rows."""
    made = Span.__post_init__

    def wrong(self: Span) -> None:
        self.starts = mx.broadcast_to(self.starts[:1], self.starts.shape)
        made(self)

    patch.setattr(Span, "__post_init__", wrong)


def release_without_move(patch: Patch) -> None:
    """A slot is filled by the last row in name only."""
    patch.setattr(KVCachePool, "_move", lambda self, moves: None)


def mask_sees_one_more(patch: Patch) -> None:
    """Each query also sees the key after its own."""
    right = Span.mask

    def wrong(self: Span, window_size: int | None) -> mx.array:
        shifted = Span(
            self.first, self.count, self.starts + 1, self.width, self.limit, self.uniform
        )
        return right(shifted, window_size)

    patch.setattr(Span, "mask", wrong)


def mask_sees_one_less(patch: Patch) -> None:
    """No query sees its own key."""
    right = Span.mask

    def wrong(self: Span, window_size: int | None) -> mx.array:
        shifted = Span(
            self.first, self.count, self.starts - 1, self.width, self.limit, self.uniform
        )
        return right(shifted, window_size)

    patch.setattr(Span, "mask", wrong)


def no_rollback(patch: Patch) -> None:
    """Rejected drafts stay in the cache."""

    def wrong(self: BatchState, samples: mx.array, accepted: mx.array) -> None:
        APPEND(self, samples, mx.full(accepted.shape, samples.shape[1] - 1, accepted.dtype))

    patch.setattr(BatchState, "append", wrong)


def tail_zeroed(patch: Patch) -> None:
    """The K/V before a write are zeroed, as a rollback by zeroing one token too many would."""
    right = DenseKVCache.update_and_fetch

    def wrong(self: DenseKVCache, keys: mx.array, values: mx.array) -> Any:
        keys, values = right(self, keys, values)
        last = mx.arange(keys.shape[2]) == (self.span.starts - 1)[:, None]
        return mx.where(last[:, None, :, None], 0, keys), values

    patch.setattr(DenseKVCache, "update_and_fetch", wrong)


def accepts_one_too_many(patch: Patch) -> None:
    """The first rejected token is kept."""

    def wrong(draft: mx.array, samples: mx.array, lengths: mx.array | None) -> mx.array:
        most = draft.shape[1] if lengths is None else lengths
        return mx.minimum(COUNT(draft, samples, lengths) + 1, most)

    patch.setattr(acceptance, "count_accepted", wrong)


def rows_stay_after_leave(patch: Patch) -> None:
    """Per-row state is keyed by row number: nobody's moves when another row leaves."""
    right = BatchState.rearrange

    def wrong(self: BatchState, order: Any, newcomers: Any, **more: Any) -> None:
        kept = self.tokens, self.lengths
        right(self, order, newcomers, **more)
        count = len(order)
        if count:
            self.lengths = mx.concatenate([kept[1][:count], self.lengths[count:]])

    patch.setattr(BatchState, "rearrange", wrong)


def noise_by_row(patch: Patch) -> None:
    """The noise depends on the row a request happens to sit in."""

    def wrong(self: SamplingBatch, logits: mx.array, positions: mx.array, **options: Any) -> Any:
        rows = mx.arange(positions.shape[0])[:, None]
        return SAMPLE(self, logits, positions + 1000 * rows, **options)

    patch.setattr(SamplingBatch, "sample", wrong)


def noise_by_place_in_step(patch: Patch) -> None:
    """The noise depends on the place within the verify pass, not on the position."""

    def wrong(self: SamplingBatch, logits: mx.array, positions: mx.array, **options: Any) -> Any:
        return SAMPLE(self, logits, positions - positions[:, :1], **options)

    patch.setattr(SamplingBatch, "sample", wrong)


def options_of_the_first_row(patch: Patch) -> None:
    """One sampler for all rows."""
    right = SamplingBatch.of.__func__  # type: ignore[attr-defined]

    def wrong(cls: type, sequences: Any, *more: Any) -> SamplingBatch:
        same = [copy(sequence) for sequence in sequences]
        for sequence in same:
            sequence.sampling = same[0].sampling
        made: SamplingBatch = right(cls, same, *more)
        return made

    patch.setattr(SamplingBatch, "of", classmethod(wrong))


def ends_only_after_a_run(patch: Patch) -> None:
    """Stop tokens and max_tokens are looked at only on the last token of a run."""
    right = Sequence.extend

    def wrong(self: Sequence, tokens: list[int]) -> list[int]:
        self.tokens += tokens[:-1]
        return tokens[:-1] + right(self, tokens[-1:])

    patch.setattr(Sequence, "extend", wrong)


APPEND = BatchState.append
COUNT = acceptance.count_accepted
SAMPLE = SamplingBatch.sample

MUTANTS: list[tuple[Callable[[Patch], None], bool]] = [
    (shared_offset, False),
    (release_without_move, False),
    (mask_sees_one_more, False),
    (mask_sees_one_less, False),
    (no_rollback, False),
    (tail_zeroed, False),
    (accepts_one_too_many, False),
    (rows_stay_after_leave, False),
    (noise_by_row, True),
    (noise_by_place_in_step, True),
    (options_of_the_first_row, True),
    (ends_only_after_a_run, False),
]


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_without_a_bug_nothing_is_wrong(sampled: bool) -> None:
    assert run(5, sampled) == []


@pytest.mark.parametrize(("plant", "sampled"), MUTANTS, ids=[m[0].__name__ for m in MUTANTS])
def test_planted_bug_is_noticed(
    plant: Callable[[Patch], None], sampled: bool, monkeypatch: Patch
) -> None:
    make_jobs("llama", sampled, 11)  # expected outputs are made without the bug
    plant(monkeypatch)
    assert run(5, sampled) != []


@pytest.mark.parametrize("plant", [shared_offset, release_without_move, rows_stay_after_leave])
def test_batching_bugs_pass_unnoticed_in_a_batch_of_one(
    plant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    """The reason why no exactness test may run at B = 1 only."""
    make_jobs("llama", False, 3)
    plant(monkeypatch)
    assert run(1, False) == []


def count_passes() -> list[int]:
    """Passes that five rows need with a drafter that is wrong at every fifth position."""
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=CorruptingDrafter(target("llama"), 5, every_fifth, VOCABULARY),
        policy=FixedDraftLength(4),
        batching=BatchingConfig(batch_size=5),
    )
    sequences = [Sequence([1 + i] * (3 + i), SamplingParams(max_tokens=24)) for i in range(5)]
    decoder.add(sequences)
    while decoder.busy:
        decoder.step()
    return [sequence.steps for sequence in sequences]


def bonus_lost(patch: Patch) -> None:
    """A fully accepted row gets no bonus token."""

    def wrong(draft: mx.array, samples: mx.array, lengths: mx.array | None) -> mx.array:
        count = COUNT(draft, samples, lengths)
        return mx.where(count == draft.shape[1], mx.maximum(count - 1, 0), count)

    patch.setattr(acceptance, "count_accepted", wrong)


def all_or_nothing(patch: Patch) -> None:
    """A row keeps its draft whole or not at all."""

    def wrong(draft: mx.array, samples: mx.array, lengths: mx.array | None) -> mx.array:
        count = COUNT(draft, samples, lengths)
        return mx.where(count == draft.shape[1], count, 0)

    patch.setattr(acceptance, "count_accepted", wrong)


def batch_minimum(patch: Patch) -> None:
    """All rows keep as many tokens as the worst one."""

    def wrong(draft: mx.array, samples: mx.array, lengths: mx.array | None) -> mx.array:
        count = COUNT(draft, samples, lengths)
        return mx.broadcast_to(count.min(), count.shape)

    patch.setattr(acceptance, "count_accepted", wrong)


@pytest.mark.parametrize("plant", [bonus_lost, all_or_nothing, batch_minimum])
def test_wasted_acceptance_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """These stay exact and only cost passes: the count of passes is what shows them."""
    right = count_passes()
    plant(monkeypatch)
    assert sum(count_passes()) > sum(right)
