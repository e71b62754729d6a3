"""The draft length follows cost and acceptance: near the best K, and never much below plain.

Everything runs on simulated hardware (``tests.hardware``) whose truth is known, without a clock.
Merits are true tokens per true second, relative to the best fixed draft length of the setting.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import cap_lengths
from tests.hardware import (
    ALL,
    FIRST_STEPS,
    FREE_DRAFT,
    LINEAR,
    MEMORY_BOUND,
    MOST,
    ROOFLINE,
    STAIRCASE,
    Hardware,
    Simulation,
    adaptive,
    make_rows,
    named,
)

# "Never slower": what learning and trying may cost over a few hundred steps.
LEAST_OF_PLAIN = 0.95
LEAST_OF_BEST = 0.93


def least(best: int) -> float:
    return LEAST_OF_PLAIN if best == 0 else LEAST_OF_BEST


# --- lengths and their ends -------------------------------------------------------------------


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=6), length=st.integers(0, 8))
def test_no_row_drafts_past_its_end(counts: list[int], length: int) -> None:
    """Stops draft tokens that could never be emitted: one place is the target's own."""
    expected = [min(length, count - 1) for count in counts]
    assert cap_lengths(make_rows(*counts), length) == expected
    assert FixedDraftLength(length).choose(make_rows(*counts)) == expected


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_adaptive_length_stays_in_its_bounds(data: st.DataObject) -> None:
    """Stops a length past the maximum or past a row's end, in any phase and after any report:
    rows near their end, unclean steps, absurd times, steps that are never reported.
    """
    most = data.draw(st.integers(1, 8))
    policy = adaptive(most, probe_interval=data.draw(st.integers(1, 5)))
    for _ in range(data.draw(st.integers(1, 40))):
        batch = make_rows(*data.draw(st.lists(st.integers(1, 10), min_size=1, max_size=4)))
        lengths = policy.choose(batch)
        assert len(lengths) == len(batch)
        for row, length in zip(batch, lengths, strict=True):
            assert 0 <= length <= min(most, row.remaining - 1)
        if data.draw(st.booleans()):
            accepted = [data.draw(st.integers(0, length)) for length in lengths]
            seconds = data.draw(st.sampled_from([1e-9, 1e-3, 1.0, 1e4]))
            policy.observe(StepReport(batch, lengths, accepted, seconds, data.draw(st.booleans())))


def test_all_rows_of_a_step_share_one_length() -> None:
    """Stops rows with drafts of different lengths: the pass costs what its longest row costs."""
    policy = adaptive()
    batch = make_rows(500, 500, 500)
    for step in range(80):
        lengths = policy.choose(batch)
        assert len(set(lengths)) == 1
        policy.observe(StepReport(batch, lengths, [0, lengths[1], step % 2], 1.0, True))


# --- near the best ------------------------------------------------------------------------

CHANCES = [0.0, 0.3, 0.6, 0.85, 1.0]


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("hardware", ALL, ids=named)
def test_goodput_comes_near_the_best_fixed_length(hardware: Hardware, noise: float) -> None:
    """Stops a policy that is slower than no speculation, stuck at a poor K, or long in learning;
    rows of one acceptance, at batch sizes 1 and 5.
    """
    for count in (1, 5):
        for chance in CHANCES:
            chances = [chance] * count
            best, goodput = hardware.best(chances, MOST)
            runs = [
                Simulation(adaptive(), hardware, chances, noise=noise, seed=seed).steps(FIRST_STEPS)
                for seed in range(2)
            ]
            mean = sum(run.merit() for run in runs) / len(runs)
            assert mean > least(best) * goodput, (count, chance, best)
            # A single row's luck may mislead for a while, but not far below plain decoding.
            worst = min(run.merit() for run in runs)
            assert worst > 0.9 * hardware.goodput(chances, 0), (count, chance, best)


@pytest.mark.parametrize("hardware", ALL, ids=named)
def test_rows_of_different_acceptance_share_the_best_length(hardware: Hardware) -> None:
    """Stops a length chosen for the average acceptance: tokens are convex in it, and two perfect
    rows among hopeless ones are worth drafts that five average rows are not.
    """
    for chances in ([1.0, 0.0, 0.0, 1.0, 0.0], [0.9, 0.5, 0.1], [0.95] + [0.2] * 7):
        best, goodput = hardware.best(chances, MOST)
        run = Simulation(adaptive(), hardware, chances, noise=0.05, seed=3).steps(FIRST_STEPS)
        assert run.merit() > least(best) * goodput, (chances, best)


@pytest.mark.parametrize("most", [1, 2, 3, 12])
def test_other_maxima_work_too(most: int) -> None:
    """Stops start or probe lengths past the maximum, and a search that ends at 6."""
    for hardware, chance in ((MEMORY_BOUND, 0.9), (FREE_DRAFT, 1.0), (LINEAR, 0.2)):
        chances = [chance] * 3
        best, goodput = hardware.best(chances, most)
        run = Simulation(adaptive(most), hardware, chances, noise=0.03, seed=4).steps(FIRST_STEPS)
        assert run.merit(100) > 0.93 * goodput, (hardware.name, best)


# --- outliers -----------------------------------------------------------------------------


def merit_after(outlier: int | None, hardware: Hardware, chances: list[float]) -> float:
    simulation = Simulation(adaptive(), hardware, list(chances), noise=0.02, seed=9)
    if outlier is not None:
        simulation.outliers = {outlier: 50.0}
    return simulation.steps(FIRST_STEPS).merit()


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(range(6), id="at the start"),
        pytest.param(range(100, 175, 12), id="later"),
    ],
)
def test_one_slow_step_does_not_decide(steps: range) -> None:
    """Stops a hiccup (another program, a page fault) from switching speculation on or off."""
    for hardware in (ROOFLINE, LINEAR, STAIRCASE, MEMORY_BOUND):
        for count, chance in ((4, 0.0), (8, 0.6), (1, 0.9)):
            chances = [chance] * count
            usual = merit_after(None, hardware, chances)
            for step in steps:
                merit = merit_after(step, hardware, chances)
                assert merit > 0.95 * usual, (hardware.name, count, chance, step)


# --- the same every time ------------------------------------------------------------------


def test_the_same_reports_give_the_same_lengths() -> None:
    """Stops hidden state: clocks, hash order, global memory of another policy."""
    runs = [
        Simulation(adaptive(), STAIRCASE, [0.7, 0.2, 0.9], noise=0.1, seed=12).steps(FIRST_STEPS)
        for _ in range(2)
    ]
    assert runs[0].lengths == runs[1].lengths
    assert len(set(runs[0].lengths)) > 2


@pytest.mark.parametrize("length", [0, 3])
def test_a_fixed_length_is_fixed(length: int) -> None:
    """Stops a baseline that adapts, by which all comparisons above would be void."""
    run = Simulation(FixedDraftLength(length), LINEAR, [0.1] * 4).steps(60)
    assert set(run.lengths) == {length}
