"""What is remembered of step times, and what is guessed of those never measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_spec.control.costs import StepCosts, bucket
from mlx_spec.control.report import StepWork


def table(cells: dict[tuple[int, int], float], times: int = 3) -> StepCosts:
    made = StepCosts()
    for _ in range(times):
        for (batch, length), seconds in cells.items():
            made.record(StepWork(batch, length), seconds)
    return made


def predict(made: StepCosts, batch: int, length: int) -> float:
    seconds = made.predict(StepWork(batch, length))
    assert seconds is not None
    return seconds


def test_an_empty_table_knows_nothing() -> None:
    """Stops a made-up time, by which an unmeasured draft length would look good or bad."""
    assert StepCosts().predict(StepWork(1, 0)) is None
    assert not StepCosts().comparable


def test_measured_cells_are_what_was_measured() -> None:
    """Stops draft lengths or batch sizes that share a cell."""
    cells = {(batch, length): 10.0 * batch + length for batch in (1, 2, 5) for length in (0, 1, 4)}
    made = table(cells)
    assert {cell: predict(made, *cell) for cell in cells} == pytest.approx(cells)


def test_between_and_beyond_measurements_a_line_is_drawn() -> None:
    """Stops a step function between measured draft lengths, and a free lunch beyond them."""
    made = table({(2, 0): 10.0, (2, 2): 14.0, (2, 4): 15.0})
    assert predict(made, 2, 1) == pytest.approx(12.0)
    assert predict(made, 2, 3) == pytest.approx(14.5)
    assert predict(made, 2, 6) == pytest.approx(16.0)


def test_one_measurement_says_the_same_of_all_lengths() -> None:
    """Stops a guess that longer drafts are free or impossible before anything is known."""
    made = table({(1, 2): 7.0})
    assert not made.comparable
    assert [made.predict(StepWork(1, length)) for length in (0, 2, 6)] == [7.0, 7.0, 7.0]


@given(
    cells=st.dictionaries(
        st.tuples(st.integers(1, 40), st.integers(0, 8)),
        st.floats(1e-5, 1e3),
        min_size=1,
        max_size=12,
    ),
    batch=st.integers(1, 64),
)
def test_predictions_are_always_times(cells: dict[tuple[int, int], float], batch: int) -> None:
    """Stops a negative, zero or infinite time, whatever noise the cells hold."""
    made = table(cells, times=1)
    for length in range(12):
        seconds = made.predict(StepWork(batch, length))
        if seconds is None:  # some other batch size was measured, at a single draft length
            assert not made.comparable
            assert bucket(batch) not in {bucket(known) for known, _ in cells}
        else:
            assert 0 < seconds < 1e6


def test_a_longer_draft_is_never_thought_cheaper_beyond_what_was_measured() -> None:
    """Stops a noisy pair of cells from promising ever cheaper drafts."""
    made = table({(3, 1): 10.0, (3, 2): 9.0})
    assert predict(made, 3, 8) >= 9.0


@given(batch=st.integers(1, 4096))
def test_buckets_are_ordered_and_near(batch: int) -> None:
    """Stops batch sizes far apart in one row of the table, and a loop that never ends."""
    size = bucket(batch)
    assert batch <= size <= max(8, 1.5 * batch)
    assert bucket(size) == size
    assert bucket(batch + 1) >= size
    assert batch > 8 or size == batch


def test_an_unmeasured_batch_size_borrows_from_its_neighbour() -> None:
    """Stops a batch that shrinks by a row from starting anew; and the nearest must win."""
    made = table({(4, 0): 10.0, (4, 2): 12.0, (16, 0): 100.0, (16, 2): 300.0})
    assert predict(made, 5, 2) / predict(made, 5, 0) == pytest.approx(1.2)
    assert predict(made, 14, 2) / predict(made, 14, 0) == pytest.approx(3.0)
    made.record(StepWork(5, 0), 11.0)  # one length alone is still not comparable
    assert predict(made, 5, 2) / predict(made, 5, 0) == pytest.approx(1.2)


def test_the_first_measurement_may_be_slow() -> None:
    """Stops a shape that paid for compiling once from looking slow for long."""
    made = StepCosts()
    made.record(StepWork(1, 2), 50.0)
    made.record(StepWork(1, 2), 1.0)
    assert predict(made, 1, 2) == 1.0


def test_one_outlier_moves_little_and_a_change_is_followed() -> None:
    """Stops both: one hiccup that is believed, and a lasting change that is not."""
    made = table({(1, 0): 1.0}, times=6)
    made.record(StepWork(1, 0), 50.0)
    assert predict(made, 1, 0) < 1.5
    for _ in range(12):
        made.record(StepWork(1, 0), 3.0)
    assert predict(made, 1, 0) == pytest.approx(3.0, rel=0.1)
    for _ in range(12):
        made.record(StepWork(1, 0), 1.0)
    assert predict(made, 1, 0) == pytest.approx(1.0, rel=0.1)


def test_a_slow_cell_does_not_hide_longer_ones_that_are_known_to_be_cheap() -> None:
    """Stops one hiccup at K = 2 from ruling out K = 1..5 for good: a shorter draft cannot cost
    more than a longer one, which was measured often.
    """
    made = table({(8, 0): 21.0, (8, 6): 55.0}, times=9)
    made.record(StepWork(8, 2), 50 * 24.0)
    assert predict(made, 8, 1) <= 55.0
    assert predict(made, 8, 2) <= 55.0
    assert predict(made, 8, 4) <= 55.0
