"""The budget of a step goes to the guesses that are likeliest to stand, wherever they are."""

from __future__ import annotations

from itertools import accumulate, product
from operator import mul

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_spec.control.allocation import Prices, StepBudget, best_budget, fill, spend

CHANCE = st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
ROWS = st.lists(st.lists(CHANCE, max_size=3), min_size=1, max_size=3)


def reaching(rows: list[list[float]]) -> list[list[float]]:
    return [list(accumulate(row, mul)) for row in rows]


def every_step(rows: list[list[float]], prices: Prices) -> dict[tuple[int, ...], float]:
    """Tokens per second of all lengths that there are, by hand."""
    speeds = {}
    for lengths in product(*(range(len(row) + 1) for row in rows)):
        if not any(lengths):
            continue
        guesses = sum(lengths) if prices.packs else len(rows) * max(lengths)
        seconds = prices.verify[guesses] + prices.draft[max(lengths)]
        tokens = len(rows) + sum(sum(row[:n]) for row, n in zip(rows, lengths, strict=True))
        speeds[lengths] = tokens / seconds
    return speeds


@given(
    rows=ROWS,
    steps=st.lists(st.sampled_from([0.0, 0.0, 0.3, 2.0]), min_size=9, max_size=9),
    draft=st.sampled_from([0.0, 0.2, 1.0]),
    packs=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_other_lengths_promise_more(
    rows: list[list[float]], steps: list[float], draft: float, packs: bool
) -> None:
    """Stops a greedy choice that misses the best one: every vector of lengths is tried by hand."""
    likely = reaching(rows)
    prices = Prices(list(accumulate(steps, initial=2.0)), [k * draft for k in range(4)], packs)
    speeds = every_step(likely, prices)
    budget = best_budget(likely, prices)
    if not speeds:
        assert budget.passes == budget.guesses == 0
        return
    if budget.guesses:
        assert budget.speed == pytest.approx(max(speeds.values()))
        lengths = fill([row[: budget.passes] for row in likely], budget, range(len(rows)))
        if packs:
            assert speeds[tuple(lengths)] == pytest.approx(budget.speed)
    else:  # drafting and verifying nothing of it: that no draft pays
        assert max(speeds.values()) <= len(rows) / prices.verify[0] + 1e-9


def test_a_row_without_a_good_guess_gets_none_and_its_neighbour_keeps_its() -> None:
    likely = reaching([[0.9, 0.9, 0.9], [0.05, 0.05, 0.05], [0.6, 0.6, 0.6]])
    prices = Prices([10 + n for n in range(10)], [0.0] * 4)
    budget = best_budget(likely, prices)
    assert fill(likely, budget, range(3)) == [3, 0, 1]


def test_what_a_padded_pass_has_room_for_is_filled() -> None:
    """Sixteen tokens that cost what four do are sixteen tokens."""
    likely = reaching([[0.5] * 8, [0.2] * 8])
    prices = Prices([1.0] * 7 + [9.0] * 10, [0.0] * 9)
    budget = best_budget(likely, prices)
    assert budget.guesses == 6
    assert fill(likely, budget, range(2)) == [4, 2]


def test_equal_guesses_go_to_those_who_have_most_to_say() -> None:
    likely = [[0.5], [0.5], [0.5]]
    assert fill(likely, StepBudget(1, 2, 4.0, 1.0), [2, 0, 1]) == [1, 0, 1]


def test_a_rectangle_is_as_wide_as_its_widest_row() -> None:
    """Where a model does not pack, a neighbour's guess is paid for by all."""
    likely = reaching([[1.0, 1.0, 1.0], [0.0], [0.0], [0.0]])
    square = Prices([4.0 + n for n in range(13)], [0.0], packs=False)
    assert spend(likely, 0, square).guesses == 0
    packed = Prices([4.0 + n for n in range(13)], [0.0])
    assert spend(likely, 0, packed).guesses in (0, 3)  # a draw: a sure token costs what it brings
    assert spend(likely, 0, packed).tokens >= 4


@pytest.mark.parametrize("rows", [1, 256])
def test_any_batch_size(rows: int) -> None:
    likely = reaching([[0.8] * 6] * rows)
    prices = Prices([20 + 0.05 * n for n in range(6 * rows + 1)], [1.5 * k for k in range(7)])
    budget = best_budget(likely, prices)
    assert sum(fill(likely, budget, range(rows))) == budget.guesses == rows * budget.passes > 0
