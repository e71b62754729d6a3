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
    for limit, left in ((320, 0), (319, -1)):
        budget = KVBudget(RowCost(per_token=10), limit, 16)
        assert budget.left([16, 3]) == left
        assert TokenBudget(budget, None).fits([16, 3]) == (left >= 0)


def test_what_stops_growing_stays_flat() -> None:
    """A window of 40 tokens and a state beside full attention, of target and draft together."""
    window = RowCost(per_token=10, capped=((40, 100),))
    cost = window + RowCost(fixed=7, capped=((40, 1), (8, 5)))
    assert cost == RowCost(fixed=7, per_token=10, capped=((8, 5), (40, 101)))
    assert cost.nbytes(8) == 7 + 80 + 8 * 5 + 8 * 101
    assert cost.nbytes(1000) - cost.nbytes(40) == 960 * 10
    assert sum([cost, cost], RowCost()).nbytes(50) == 2 * cost.nbytes(50)
    budget = KVBudget(RowCost(capped=((40, 100),)), 10**6, 16)
    assert budget.nbytes([48] * 3) == budget.nbytes([5000, 1, 48]) == 3 * 40 * 100
    assert budget.most_rows(48) == budget.most_rows(10**6) == 250


def test_rows_that_take_nothing_fit_in_any_number() -> None:
    """Stops a division by zero for a model that keeps no bytes a token."""
    budget = KVBudget(RowCost(), 100, 16)
    assert budget.most_rows(10**6) == 100
    assert budget.left([10**6] * 50) == 100
    assert KVBudget(RowCost(fixed=30), 100, 16).most_rows(10**6) == 3


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
    assert engine.memory.budget.kv.limit == room - kept


@pytest.mark.parametrize(
    ("given", "meant"), [(None, None), (0.5, 0.5), (1.0, 1.0), (3e9, 3_000_000_000)]
)
def test_the_flag_takes_a_share_or_bytes(given: float | None, meant: float | None) -> None:
    made = Flags(memory_limit=given).batches.memory_limit
    assert (made, type(made)) == (meant, type(meant))
