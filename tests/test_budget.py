"""Bytes of K/V: what rows take, which rows fit, and that a refusal names the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_spec.batching.engine import Engine, TokenBudget
from mlx_spec.cache.budget import KVBudget
from mlx_spec.cache.cost import RowCost
from mlx_spec.config import BatchingConfig
from mlx_spec.pipeline.flags import Flags
from tests.memory import settled_memory
from tests.models import make_model

LENGTHS = st.lists(st.integers(1, 500), max_size=8)


@pytest.mark.parametrize(
    ("tokens", "nbytes"),
    [
        ([], 0),
        ([1], 16 * 10),
        ([16], 16 * 10),
        ([17], 32 * 10),
        # Slots are dense: each is as long as the longest.
        ([1, 17], 2 * 32 * 10),
        ([17, 1, 1], 3 * 32 * 10),
    ],
)
def test_bytes_of_dense_slots_in_whole_blocks(tokens: list[int], nbytes: int) -> None:
    assert KVBudget(RowCost(per_token=10), 10**9, 16).nbytes(tokens) == nbytes


def test_exactly_the_limit_fits_and_a_byte_less_does_not() -> None:
    assert KVBudget(RowCost(per_token=10), 320, 16).fits([16, 3])
    assert not KVBudget(RowCost(per_token=10), 319, 16).fits([16, 3])


@given(LENGTHS, LENGTHS)
def test_fewer_or_shorter_rows_never_take_more(rows: list[int], more: list[int]) -> None:
    budget = KVBudget(RowCost(per_token=3), 0, 16)
    assert budget.nbytes(rows) <= budget.nbytes(rows + more)
    assert budget.nbytes([max(1, tokens - 7) for tokens in rows]) <= budget.nbytes(rows)
    # Never less than the tokens themselves, and never more than a block a row beyond the longest.
    assert budget.nbytes(rows) >= 3 * sum(rows)
    assert budget.nbytes(rows) <= 3 * len(rows) * (max(rows, default=0) + 15)


@given(LENGTHS.filter(bool), st.integers(0, 20_000), st.one_of(st.none(), st.integers(2, 1000)))
def test_both_limits_hold_and_a_refusal_names_the_one_that_was_broken(
    rows: list[int], limit: int, together: int | None
) -> None:
    budget = TokenBudget(KVBudget(RowCost(per_token=3), limit, 16), together)
    within_bytes = budget.kv.nbytes(rows) <= limit
    within_tokens = together is None or sum(rows) <= together
    assert budget.fits(rows) == (within_bytes and within_tokens)
    if not within_tokens:
        assert budget.explain(rows) == f"{sum(rows)} tokens, {together} allowed (max_batch_tokens)"
    elif not within_bytes:
        text = budget.explain(rows)
        assert f"need {budget.kv.nbytes(rows)} bytes of K/V and of a step" in text
        assert f"{limit} are there (memory_limit)" in text


@pytest.mark.parametrize("draft", [False, True])
def test_prefix_caches_never_crowd_out_the_rows(draft: bool) -> None:
    """A tight limit is no reason to refuse requests that would run without such caches."""
    model = make_model()
    other = make_model() if draft else None
    room, asked = 80_000, 2**30
    limit = settled_memory() + room
    engine = Engine(
        model,
        None,
        draft_model=other,
        batching=BatchingConfig(memory_limit=limit, prefix_cache_bytes=asked),
    )
    kept = engine.batching.prefix_cache_bytes * (1 + draft)
    assert 0 < kept <= room / 4
    assert engine.budget.kv.limit == room - kept


@pytest.mark.parametrize(
    ("given", "meant"), [(None, None), (0.5, 0.5), (1.0, 1.0), (3e9, 3_000_000_000)]
)
def test_the_flag_takes_a_share_or_bytes(given: float | None, meant: float | None) -> None:
    made = Flags(memory_limit=given).batches.memory_limit
    assert (made, type(made)) == (meant, type(meant))
