"""The draft length follows cost and acceptance: near what one would choose who knew them.

Everything runs on simulated machines (``scripts.simulated``), without a clock. Regret is what a
policy says less, in expected tokens per true second, than one that knows all chances and prices.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import cap_lengths
from scripts.simulated.knowing import Clairvoyant
from scripts.simulated.machines import (
    COMPUTE,
    CPU,
    FLAT,
    FREE_DRAFT,
    LINEAR,
    M1_ULTRA,
    M3_ULTRA,
    M3_ULTRA_CHANCES,
    SQUARE,
    TILES_5,
    TILES_32,
    Machine,
)
from scripts.simulated.play import Conditions, Simulation
from scripts.simulated.regret import MOST, batch, best, together
from scripts.simulated.texts import Workload, even, mixed
from tests.policies import adaptive, make_rows

STEPS = 300
STATIONARY = 0.03  # most regret


def named(machine: Machine) -> str:
    return machine.name


def plain(machine: Machine, rows: int) -> float:
    return rows / machine.seconds(rows, machine.prices().tokens([0] * rows), 0)


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
    policy = adaptive(TILES_5, most, probe_interval=data.draw(st.integers(1, 5)))
    rows = make_rows(*data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=6)))
    for _ in range(data.draw(st.integers(1, 40))):
        if data.draw(st.booleans()):
            rows = rows[1:] or make_rows(data.draw(st.integers(1, 10)))
        lengths = policy.choose(rows)
        assert len(lengths) == len(rows)
        for row, length in zip(rows, lengths, strict=True):
            assert 0 <= length <= min(most, max(0, row.remaining - 1))
        if data.draw(st.booleans()):
            accepted = [data.draw(st.integers(0, length)) for length in lengths]
            seconds = data.draw(st.sampled_from([1e-9, 1e-3, 1.0, 1e4]))
            policy.observe(StepReport(rows, lengths, accepted, seconds, data.draw(st.booleans())))
            for row, count in zip(rows, accepted, strict=True):
                row.emit(count + 1)


HALF = Machine("half as dear", lambda m: 6 + 1.0 * m, lambda b: 0.05)


def test_one_easy_text_beside_hard_ones_gets_the_guesses() -> None:
    """Stops one length for all: the hard rows would pay for the easy one's draft."""
    texts = [(0.95,), (0.05,), (0.1,), (0.05,)]
    runs = []
    for policy in (adaptive(HALF), Clairvoyant(HALF, MOST)):
        simulation = Simulation(policy, HALF, batch(4, (0.0,)), Conditions(seed=2))
        for row, chances in zip(simulation.rows, texts, strict=True):
            row.text = even(*chances)
        runs.append(simulation.steps(STEPS))
    first, *others = (sum(row) for row in zip(*runs[0].lengths[100:], strict=True))
    assert first > 10 * max(others)
    assert runs[0].merit(60) > (1 - 1.5 * STATIONARY) * runs[1].merit(60)


# --- near the best ------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [TILES_32, COMPUTE], ids=named)
def test_any_batch_size_up_to_hundreds(machine: Machine) -> None:
    for count in (64, 256):
        work = batch(count, M3_ULTRA_CHANCES)
        run = Simulation(adaptive(machine), machine, work, Conditions(seed=4)).steps(40)
        assert run.merit(10) > (1 - STATIONARY) * best(machine, work)


@pytest.mark.parametrize("machine", [FLAT, TILES_5, CPU, SQUARE], ids=named)
def test_texts_of_all_categories_that_come_and_go(machine: Machine) -> None:
    """Stops rows that are judged by their neighbours' texts, and newcomers that are not known."""
    work = Workload(8, mixed, tokens=lambda rng: rng.randint(40, 200))
    mine = known = 0.0
    for seed in range(4):
        for policy in (adaptive(machine), Clairvoyant(machine, MOST)):
            run = Simulation(policy, machine, work, Conditions(seed=seed)).steps(STEPS)
            if isinstance(policy, Clairvoyant):
                known += run.merit()
            else:
                mine += run.merit()
    assert mine > (1 - 1.5 * STATIONARY) * known


@pytest.mark.parametrize("most", [1, 2, 3, 12])
def test_other_maxima_work_too(most: int) -> None:
    """Stops start or probe lengths past the maximum, and a search that ends at 6."""
    for machine, chance in ((FLAT, 0.9), (FREE_DRAFT, 1.0), (LINEAR, 0.2)):
        work = batch(3, (chance,))
        run = Simulation(adaptive(machine, most), machine, work, Conditions(seed=4)).steps(STEPS)
        assert run.merit(30) > (1 - STATIONARY) * best(machine, work, most), machine.name


# --- published machines -------------------------------------------------------------------


# Of plain decoding, at a fixed depth of 3, as published; and what must be found. With one and two
# rows the published figures are above what these chances allow, and there is nothing to find.
PUBLISHED = {8: 1.43, 10: 1.00, 12: 1.26, 16: 1.34, 24: 1.03, 32: 0.82}
FOUND = {1: 1.80, 2: 1.22, 8: 1.35, 10: 1.40, 12: 1.5, 16: 1.5, 24: 1.08, 32: 0.98}


@pytest.mark.parametrize("rows", FOUND)
def test_an_m3_ultra_gets_what_its_tiles_allow(rows: int) -> None:
    """Stops a depth that looks at the batch alone: the tiles of 32 tokens allow more from ten rows
    on than a fixed one finds, and with 32 rows nothing is to be drafted.
    """
    work = batch(rows, M3_ULTRA_CHANCES)
    run = Simulation(adaptive(M3_ULTRA, 3), M3_ULTRA, work, Conditions(seed=6)).steps(STEPS)
    ratio = run.merit(30) / plain(M3_ULTRA, rows)
    assert ratio > FOUND[rows]
    assert rows < 10 or ratio > PUBLISHED[rows] + 0.04
    assert (run.usual(30) == 0) == (rows == 32)


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
def test_an_m1_ultra_parks(rows: int) -> None:
    """Each token costs nearly what the first does: drafts as good as those lose there. (A guess for
    one of sixteen rows loses 3%, and noise of a step is 5%: one run of eight may not see it.)
    """
    runs = [
        Simulation(
            adaptive(M1_ULTRA, 3), M1_ULTRA, batch(rows, M3_ULTRA_CHANCES), Conditions(seed=seed)
        ).steps(STEPS)
        for seed in range(8)
    ]
    assert sum(run.usual(30) == 0 for run in runs) >= 7
    assert all(run.merit(30) > (1 - STATIONARY) * plain(M1_ULTRA, rows) for run in runs)
    assert together(runs, 30) > 0.985 * plain(M1_ULTRA, rows)


# --- outliers, and the same every time ----------------------------------------------------


def merit_after(outlier: int | None, machine: Machine, rows: int, chance: float) -> float:
    simulation = Simulation(adaptive(machine), machine, batch(rows, (chance,)), Conditions(seed=9))
    if outlier is not None:
        simulation.outliers = {outlier: 50.0}
    return simulation.steps(120).merit()


@pytest.mark.parametrize("step", [0, 3, 60])
def test_one_slow_step_does_not_decide(step: int) -> None:
    """Stops a hiccup (another program, a page fault) from switching speculation on or off."""
    for machine in (COMPUTE, LINEAR, CPU):
        for rows, chance in ((4, 0.0), (8, 0.6), (1, 0.9)):
            usual = merit_after(None, machine, rows, chance)
            assert merit_after(step, machine, rows, chance) > 0.97 * usual, machine.name


def test_the_same_reports_give_the_same_lengths() -> None:
    """Stops hidden state: clocks, hash order, global memory of another policy."""
    work = Workload(3, mixed)
    runs = [
        Simulation(adaptive(TILES_5), TILES_5, work, Conditions(seed=12)).steps(STEPS)
        for _ in range(2)
    ]
    assert runs[0].lengths == runs[1].lengths
    assert len({tuple(lengths) for lengths in runs[0].lengths}) > 2


@pytest.mark.parametrize("length", [0, 3])
def test_a_fixed_length_is_fixed(length: int) -> None:
    """Stops a baseline that adapts, by which all comparisons above would be void."""
    run = Simulation(FixedDraftLength(length), LINEAR, batch(4, (0.1,))).steps(60)
    assert set(run.passes()) == {length}
