"""What a token is worth to each row: all alike while others wait, else by when rows end."""

from __future__ import annotations

from statistics import mean

import pytest

from mlx_spec.control.demand import RowDemand
from mlx_spec.control.ends import Ends, weighed
from scripts.simulated.lookups import CLOSED, OTHERS, Lookups, over_plain
from scripts.simulated.play import SimulatedRow


def settled(rows: list[SimulatedRow], steps: int = 200) -> Ends:
    """Nobody has joined for so long; all have gained a token a step."""
    ends = Ends()
    for _ in range(steps):
        ends.observe(rows)
        for row in rows:
            row.length += 1
    return ends


def test_the_row_that_ends_last_counts_most_where_rows_cost_nothing() -> None:
    rows = [SimulatedRow(20), SimulatedRow(20), SimulatedRow(90)]
    weights = settled(rows).weights(rows, [1.0, 1.0, 0.5], together=20.1, alone=20.0)
    assert weights is not None
    assert weights[2] > 10 * max(weights[:2])
    assert sum(weights) > 2.99


def test_where_each_row_costs_as_much_all_count_alike() -> None:
    """Stops a batch that is bound by computing from being slowed for its last row."""
    rows = [SimulatedRow(20), SimulatedRow(90)]
    weights = settled(rows).weights(rows, [1.0, 0.5], together=20.0, alone=10.0)
    assert weights is not None
    assert weights == [1.0, 1.0]


def test_while_others_come_or_the_end_is_far_all_count_alike() -> None:
    """Stops weights in a server, and for limits that no text reaches."""
    ends, rows = Ends(), [SimulatedRow(20) for _ in range(4)]
    for step in range(200):
        if step % 5 == 0:
            rows = [*rows[1:], SimulatedRow(20)]
        ends.observe(rows)
    assert ends.weights(rows, [0.0] * 4, 20.1, 20.0) is None
    endless = [SimulatedRow(10**6), SimulatedRow(10**6)]
    weights = settled(endless).weights(endless, [2.0, 0.0], 20.1, 20.0)
    assert weights is None or max(weights) < 1.01


def test_weights_leave_a_rows_own_order() -> None:
    assert weighed([[0.9, 0.8], [0.5]], [0.5, 2.0]) == [[0.45, 0.4], [1.0]]
    assert weighed([(0.9,)], None) == [(0.9,)]


def told(demand: RowDemand, rows: list[SimulatedRow]) -> list[float] | None:
    """What rows are worth after one step."""
    ends = Ends(demand)
    ends.observe(rows)
    return ends.weights(rows, [0.0] * len(rows), 20.1, 20.0)


def test_a_batch_that_is_known_as_a_whole_is_closed_from_its_first_step() -> None:
    """Stops rows that begin from being taken for newcomers: their prompts were read in turn."""
    rows = [SimulatedRow(20), SimulatedRow(90)]
    weights = told(RowDemand(waiting=0, came=2), rows)
    assert weights is not None
    assert weights[1] > 1.5
    assert told(RowDemand(waiting=1, came=3), rows) is None


def test_rows_of_the_batch_that_begin_late_are_no_newcomers_and_requests_that_come_are() -> None:
    demand = RowDemand(waiting=0, came=4)
    late, unknown = Ends(demand), Ends()
    rows = [SimulatedRow(20 * n) for n in (1, 2, 3, 4)]
    for count in (1, 2, 3, 4):
        for ends in (late, unknown):
            ends.observe(rows[:count])
    assert late.weights(rows, [0.0] * 4, 20.1, 20.0) is not None
    assert unknown.weights(rows, [0.0] * 4, 20.1, 20.0) is None
    demand.came += 4
    late.observe(rows)
    assert late.weights(rows, [0.0] * 4, 20.1, 20.0) is None


def test_who_gained_more_is_expected_to_end_sooner() -> None:
    """Stops a pace that is guessed anew at every step, by what is offered there alone."""
    rows, ends = [SimulatedRow(90), SimulatedRow(90)], Ends(RowDemand(came=2))
    for _ in range(10):
        ends.observe(rows)
        rows[0].length += 3
        rows[1].length += 1
    weights = ends.weights(rows, [0.0, 0.0], 20.1, 20.0)
    assert weights is not None
    assert weights[1] > 5 * weights[0]


@pytest.mark.parametrize("batch", CLOSED.values(), ids=CLOSED)
def test_what_is_looked_up_for_easy_texts_slows_no_closed_batch(batch: Lookups) -> None:
    """Stops guesses that are right, for rows that nobody waits for: the batch ends with those that
    copy nothing, and every pass is dearer for the others' guesses."""
    told = mean(over_plain(batch))
    assert told >= 0.98
    assert told > mean(over_plain(batch, told=False)) + 0.02


def test_lookups_pay_while_others_wait_and_where_all_copy() -> None:
    assert mean(over_plain(OTHERS["16 rows, 64 requests"])) > 1.02
    assert mean(over_plain(OTHERS["16 rows, all copy"])) > 1.1
