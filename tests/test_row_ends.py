"""What a token is worth to each row: all alike while others wait, else by when rows end."""

from __future__ import annotations

from mlx_spec.control.ends import Ends, weighed
from scripts.simulated.play import SimulatedRow


def settled(rows: list[SimulatedRow], steps: int = 200) -> Ends:
    """Nobody has joined for so long."""
    ends = Ends()
    for _ in range(steps):
        ends.observe(rows)
    return ends


def test_the_row_that_ends_last_counts_most_where_rows_cost_nothing() -> None:
    rows = [SimulatedRow(20), SimulatedRow(20), SimulatedRow(90)]
    weights = settled(rows).weights(rows, [2.0, 2.0, 1.5], together=20.1, alone=20.0)
    assert weights is not None
    assert weights[2] > 10 * max(weights[:2])
    assert sum(weights) > 2.99


def test_where_each_row_costs_as_much_all_count_alike() -> None:
    """Stops a batch that is bound by computing from being slowed for its last row."""
    rows = [SimulatedRow(20), SimulatedRow(90)]
    weights = settled(rows).weights(rows, [2.0, 1.5], together=20.0, alone=10.0)
    assert weights is not None
    assert weights == [1.0, 1.0]


def test_while_others_come_or_the_end_is_far_all_count_alike() -> None:
    """Stops weights in a server, and for limits that no text reaches."""
    ends, rows = Ends(), [SimulatedRow(20) for _ in range(4)]
    for step in range(200):
        if step % 5 == 0:
            rows = [*rows[1:], SimulatedRow(20)]
        ends.observe(rows)
    assert ends.weights(rows, [1.0] * 4, 20.1, 20.0) is None
    endless = [SimulatedRow(10**6), SimulatedRow(10**6)]
    weights = settled(endless).weights(endless, [3.0, 1.0], 20.1, 20.0)
    assert weights is None or max(weights) < 1.01


def test_weights_leave_a_rows_own_order() -> None:
    assert weighed([[0.9, 0.8], [0.5]], [0.5, 2.0]) == [[0.45, 0.4], [1.0]]
    assert weighed([(0.9,)], None) == [(0.9,)]
