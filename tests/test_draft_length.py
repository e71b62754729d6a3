"""The draft length follows cost and acceptance: near the best K, and never much below plain.

Everything runs on simulated hardware (``tests.hardware``) whose truth is known, without a clock.
Merits are true tokens per true second, relative to the best fixed draft length of the setting.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_spec.config import SamplingParams, SpeculationConfig
from mlx_spec.control.draft_length import AdaptiveDraftLength, FixedDraftLength
from mlx_spec.control.estimates import AcceptanceEstimate, StepReport, cap_lengths
from mlx_spec.control.known_costs import PairCosts
from mlx_spec.sequence import Sequence
from tests.hardware import (
    ALL,
    DEAR_DRAFT,
    FREE_DRAFT,
    LINEAR,
    MEMORY_BOUND,
    ROOFLINE,
    STAIRCASE,
    Hardware,
    Simulation,
)

MOST = 6
# "Never slower": what learning and trying may cost over a few hundred steps.
LEAST_OF_PLAIN = 0.95
LEAST_OF_BEST = 0.93
FIRST_STEPS = 300


def adaptive(most: int = MOST, **options: Any) -> AdaptiveDraftLength:
    return AdaptiveDraftLength(SpeculationConfig(num_draft_tokens=most, **options))


def rows(*remaining: int) -> list[Sequence]:
    return [Sequence([1], SamplingParams(max_tokens=count)) for count in remaining]


def least(best: int) -> float:
    return LEAST_OF_PLAIN if best == 0 else LEAST_OF_BEST


def named(hardware: Hardware) -> str:
    return hardware.name


# --- lengths and their ends -------------------------------------------------------------------


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=6), length=st.integers(0, 8))
def test_no_row_drafts_past_its_end(counts: list[int], length: int) -> None:
    """Stops draft tokens that could never be emitted: one place is the target's own."""
    expected = [min(length, count - 1) for count in counts]
    assert cap_lengths(rows(*counts), length) == expected
    assert FixedDraftLength(length).choose(rows(*counts)) == expected


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_adaptive_length_stays_in_its_bounds(data: st.DataObject) -> None:
    """Stops a length past the maximum or past a row's end, in any phase and after any report:
    rows near their end, unclean steps, absurd times, steps that are never reported.
    """
    most = data.draw(st.integers(1, 8))
    policy = adaptive(most, probe_interval=data.draw(st.integers(1, 5)))
    for _ in range(data.draw(st.integers(1, 40))):
        batch = rows(*data.draw(st.lists(st.integers(1, 10), min_size=1, max_size=4)))
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
    batch = rows(500, 500, 500)
    for step in range(80):
        lengths = policy.choose(batch)
        assert len(set(lengths)) == 1
        policy.observe(StepReport(batch, lengths, [0, lengths[1], step % 2], 1.0, True))


# --- acceptance -------------------------------------------------------------------------------


def accept(chance: float, length: int, rng: random.Random) -> int:
    run = 0
    while run < length and rng.random() < chance:
        run += 1
    return run


def test_each_row_has_its_own_acceptance() -> None:
    """Stops an average in place of rows, a bias from runs cut off by the draft length, and a
    newcomer that is taken for the worst or the best.
    """
    estimate, rng = AcceptanceEstimate(PairCosts()), random.Random(1)
    batch, chances = rows(99, 99, 99), [0.1, 0.6, 1.0]
    sums = [0.0] * 3
    for step in range(600):
        length = 1 + step % 5
        accepted = [accept(chance, length, rng) for chance in chances]
        estimate.observe(StepReport(batch, [length] * 3, accepted, 1.0, True))
        if step >= 100:
            sums = [total + estimate.chance(row) for total, row in zip(sums, batch, strict=True)]
    means = [total / 500 for total in sums]
    assert means == sorted(means)
    assert means == pytest.approx(chances, abs=0.15)
    assert 0.3 < estimate.chance(rows(99)[0]) < 0.9


def test_undrafted_steps_say_nothing_of_acceptance() -> None:
    """Stops plain steps counted as rejections."""
    estimate, batch = AcceptanceEstimate(PairCosts()), rows(99, 99)
    before = [estimate.chance(row) for row in batch]
    for _ in range(50):
        estimate.observe(StepReport(batch, [0, 0], [0, 0], 1.0, True))
    assert [estimate.chance(row) for row in batch] == pytest.approx(before, abs=0.02)


def test_expected_tokens_follow_the_formula() -> None:
    """Stops a sum that forgets the target's own token, or a row's end."""
    estimate, batch = AcceptanceEstimate(PairCosts()), rows(99, 3, 1)
    a = estimate.chance(batch[0])
    assert estimate.expected_tokens(batch, 0) == 3
    assert estimate.expected_tokens(batch, 4) == pytest.approx(
        (1 + a + a**2 + a**3 + a**4) + (1 + a + a**2) + 1
    )


# --- (a) near the best ------------------------------------------------------------------------

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


# --- (b) parked and back ----------------------------------------------------------------------


def cannot_pay(hardware: Hardware, count: int) -> float | None:
    """An acceptance at which any draft loses clearly."""
    for chance in (0.4, 0.2, 0.0):
        chances = [chance] * count
        plain = hardware.goodput(chances, 0)
        if all(hardware.goodput(chances, k) < 0.95 * plain for k in range(1, MOST + 1)):
            return chance
    return None


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("hardware", ALL, ids=named)
def test_speculation_switches_itself_off_where_it_cannot_pay(
    hardware: Hardware, count: int
) -> None:
    """Stops a policy that goes on drafting, and one that never tries again."""
    chance = cannot_pay(hardware, count)
    if chance is None:
        pytest.skip("drafts are so cheap here that nothing is lost by them")
    run = Simulation(adaptive(), hardware, [chance] * count, noise=0.05, seed=5).steps(1500)
    assert run.usual(50) == 0
    assert 0 < run.share_drafting(200) < 0.08
    assert run.merit() > 0.97 * hardware.goodput([chance] * count, 0)


@pytest.mark.parametrize(
    ("hardware", "count", "within"),
    [
        pytest.param(*(MEMORY_BOUND, 4, 300), id="memory bound"),
        pytest.param(*(STAIRCASE, 1, 300), id="staircase"),
        pytest.param(*(LINEAR, 1, 1200), id="linear"),
        pytest.param(*(DEAR_DRAFT, 4, 1200), id="dear draft"),
    ],
)
def test_speculation_returns_when_acceptance_rises(
    hardware: Hardware, count: int, within: int
) -> None:
    """Stops a row that went through a hard passage from decoding plainly ever after. Where a
    trial costs little it must come soon; where it costs much it may take longer.
    """
    chances = [0.0] * count
    simulation = Simulation(adaptive(), hardware, chances, noise=0.05, seed=6)
    simulation.steps(600)
    assert simulation.run.share_drafting(200) < 0.08
    chances[:] = [1.0] * count
    simulation.steps(within)
    before = len(simulation.run.lengths)
    simulation.steps(50)
    _, goodput = hardware.best(chances, MOST)
    assert simulation.run.merit(before) > 0.9 * goodput


@pytest.mark.parametrize("hardware", [LINEAR, DEAR_DRAFT, STAIRCASE], ids=named)
def test_speculation_stops_when_acceptance_falls(hardware: Hardware) -> None:
    """Stops a policy that lives on its past: the text turns hard to guess."""
    chances = [1.0] * 8 if hardware is STAIRCASE else [1.0]
    simulation = Simulation(adaptive(), hardware, chances, noise=0.05, seed=7)
    simulation.steps(300)
    assert simulation.run.usual(100) > 0
    chances[:] = [0.0] * len(chances)
    simulation.steps(200)
    assert simulation.run.merit(300) > 0.8 * hardware.goodput(chances, 0)
    assert simulation.run.merit(400) > 0.93 * hardware.goodput(chances, 0)


@pytest.mark.parametrize(
    ("before", "after"), [(MEMORY_BOUND, LINEAR), (LINEAR, MEMORY_BOUND)], ids=["dearer", "cheaper"]
)
def test_costs_that_change_are_followed(before: Hardware, after: Hardware) -> None:
    """Stops a table that is believed for ever: another program takes the machine, or leaves it."""
    chances = [0.6] * 4
    simulation = Simulation(adaptive(), before, chances, noise=0.05, seed=8)
    simulation.steps(200)
    simulation.hardware = after
    simulation.steps(600)
    _, goodput = after.best(chances, MOST)
    assert simulation.run.merit(600) > 0.9 * goodput


def test_a_pair_that_was_parked_gets_another_chance_in_later_calls() -> None:
    """Stops what one call learned from binding all later ones: calls shorter than the probe
    interval would otherwise never probe, however well the draft would do now.
    """
    memory, config = PairCosts(), SpeculationConfig(num_draft_tokens=MOST)
    merits = []
    for call in range(80):
        chances = [0.0 if call < 10 else 1.0]
        policy = AdaptiveDraftLength(config, memory)
        simulation = Simulation(
            policy,
            LINEAR,
            chances,
            noise=0.05,
            new_tokens=lambda _: 24,
            replace=False,
            catch_up=1.0,
            seed=call,
        )
        merits.append(simulation.steps(50).goodput())
    plain = LINEAR.goodput([1.0], 0)
    assert sum(merits[60:]) / 20 > 1.15 * plain


# --- (d) outliers -----------------------------------------------------------------------------


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


# --- (e) rows that leave and join -------------------------------------------------------------


def total(policy: Any, hardware: Hardware, chances: list[float], **options: Any) -> float:
    """Goodput over all, rows that end included."""
    simulation = Simulation(policy, hardware, list(chances), noise=0.05, seed=11, **options)
    return simulation.steps(FIRST_STEPS).goodput()


def best_fixed(hardware: Hardware, chances: list[float], **options: Any) -> tuple[float, float]:
    """Goodput of the best fixed length of 0..6, and that of plain decoding."""
    goodputs = [
        total(FixedDraftLength(length), hardware, chances, **options) for length in range(MOST + 1)
    ]
    return max(goodputs), goodputs[0]


@pytest.mark.parametrize("chance", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("hardware", [MEMORY_BOUND, STAIRCASE, ROOFLINE, LINEAR], ids=named)
def test_a_batch_that_empties_stays_near_the_best(hardware: Hardware, chance: float) -> None:
    """Stops costs of a full batch that are used for the last row, where drafts pay far more."""
    ends: Callable[[random.Random], int] = lambda rng: rng.randint(20, 400)  # noqa: E731
    options: dict[str, Any] = {"new_tokens": ends, "replace": False}
    best, plain = best_fixed(hardware, [chance] * 12, **options)
    goodput = total(adaptive(), hardware, [chance] * 12, **options)
    assert goodput > 0.9 * best
    assert goodput > 0.95 * plain


@pytest.mark.parametrize("chance", [0.0, 0.8])
@pytest.mark.parametrize(
    "hardware", [MEMORY_BOUND, STAIRCASE, LINEAR, DEAR_DRAFT], ids=lambda hardware: hardware.name
)
@pytest.mark.parametrize("count", [16, 32])
def test_short_texts_in_a_full_batch_are_never_much_slower(
    count: int, hardware: Hardware, chance: float
) -> None:
    """Stops a policy that cannot learn when a row ends in nearly every step: what was planned is
    dropped with the step built ahead, few steps are clean, and newcomers cost the drafter a pass.
    """
    options: dict[str, Any] = {"new_tokens": lambda rng: rng.randint(8, 24)}
    best, plain = best_fixed(hardware, [chance] * count, **options)
    goodput = total(adaptive(), hardware, [chance] * count, **options)
    assert goodput > 0.9 * best
    assert goodput > 0.95 * plain


# --- (f) the same every time ------------------------------------------------------------------


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
