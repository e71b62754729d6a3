"""How probable an accepted draft token is, by position and row by row."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq

import pytest

from mlx_spec.control.acceptance import AcceptanceEstimate, AverageAcceptance
from mlx_spec.control.report import StepReport
from scripts.simulated.play import SimulatedRow
from tests.policies import long_rows


def newcomer(estimate: AcceptanceEstimate) -> tuple[float, ...]:
    return estimate.chances(SimulatedRow(99), 12)


def accept(chances: Seq[float], length: int, rng: random.Random) -> int:
    run = 0
    while run < length and rng.random() < chances[min(run, len(chances) - 1)]:
        run += 1
    return run


def learned(estimate: AcceptanceEstimate, texts: Seq[Seq[float]], steps: int) -> list[list[float]]:
    """Mean chances of the first three guesses of each row, over the later steps."""
    rng, rows = random.Random(1), long_rows(len(texts))
    sums = [[0.0] * 3 for _ in texts]
    for step in range(steps):
        length = 1 + step % 5
        accepted = [accept(text, length, rng) for text in texts]
        estimate.observe(StepReport(rows, [length] * len(texts), accepted, 1.0, True))
        if step >= steps // 4:
            for row, total in zip(rows, sums, strict=True):
                for guess, chance in enumerate(estimate.chances(row, 3)):
                    total[guess] += chance / (steps - steps // 4)
    return sums


def test_each_row_has_its_own_acceptance() -> None:
    """Stops an average in place of rows, a bias from runs cut off by the draft length, and a
    newcomer that is taken for the worst or the best.
    """
    estimate = AcceptanceEstimate(AverageAcceptance())
    texts = [(0.1,), (0.6,), (1.0,)]
    found = learned(estimate, texts, 600)
    assert [row[0] for row in found] == pytest.approx([0.1, 0.6, 1.0], abs=0.15)
    assert 0.3 < estimate.chances(SimulatedRow(99), 1)[0] < 0.9


def test_each_position_has_its_own_acceptance() -> None:
    """Stops one number for all guesses: the third one stands less often than the first."""
    estimate = AcceptanceEstimate(AverageAcceptance())
    found = learned(estimate, [(0.87, 0.68, 0.4)] * 4, 600)
    for row in found:
        assert row == pytest.approx([0.87, 0.68, 0.4], abs=0.08)


def test_hard_rows_are_not_judged_by_who_reached_the_far_positions() -> None:
    """Stops a profile that rises where rows differ: only easy ones get to the third guess."""
    estimate = AcceptanceEstimate(AverageAcceptance())
    easy, *hard = learned(estimate, [(0.95,), (0.1,), (0.1,), (0.1,)], 600)
    assert easy[2] > 0.75
    assert all(row[2] < 0.25 for row in hard)


def test_what_a_row_shows_at_its_first_guesses_tells_of_the_later_ones() -> None:
    """Stops rows that are told apart only where each was tested: by odds, as the average falls."""
    estimate = AcceptanceEstimate(AverageAcceptance())
    learned(estimate, [(0.8, 0.6, 0.4)] * 8, 200)
    easy, hard, *_ = rows = long_rows(8)
    for _ in range(20):
        estimate.observe(StepReport(rows, [1] * 8, [1, 0, *[1, 1, 1, 1, 0, 1]], 1.0, True))
    assert estimate.chances(easy, 3)[2] > estimate.chances(hard, 3)[2] + 0.2
    assert all(a > b for a, b in zip(estimate.chances(easy, 3), newcomer(estimate), strict=False))


def test_a_position_that_nobody_tested_is_nearly_as_the_one_before() -> None:
    estimate, rows = AcceptanceEstimate(AverageAcceptance()), long_rows(4)
    for _ in range(50):
        estimate.observe(StepReport(rows, [1] * 4, [1, 1, 1, 0], 1.0, True))
    assert newcomer(estimate)[:3] == pytest.approx([0.75, 0.7, 0.65], abs=0.03)
    assert len(estimate.chances(rows[0], 40)) == 40


def test_undrafted_steps_say_nothing_of_acceptance() -> None:
    """Stops plain steps counted as rejections."""
    estimate, rows = AcceptanceEstimate(AverageAcceptance()), long_rows(2)
    before = estimate.chances(rows[0], 3)
    for _ in range(50):
        estimate.observe(StepReport(rows, [0, 0], [0, 0], 1.0, True))
    assert estimate.chances(rows[0], 3) == pytest.approx(before, abs=0.02)


def test_what_was_learned_fades_while_nothing_is_drafted() -> None:
    """Stops a probe that is not heard beside a thousand old tokens of a wide batch."""
    average = AverageAcceptance()
    estimate, rows = AcceptanceEstimate(average), long_rows(32)
    for _ in range(40):
        estimate.observe(StepReport(rows, [1] * 32, [0] * 32, 1.0, True))
    for _ in range(40):
        estimate.observe(StepReport(rows, [0] * 32, [0] * 32, 1.0, True))
    assert average.chance < 0.05
    estimate.observe(StepReport(rows, [1] * 16 + [0] * 16, [1] * 16 + [0] * 16, 1.0, True))
    assert average.chance > 0.5


def test_a_result_that_says_nothing_is_not_counted() -> None:
    """Stops rows that had ended before the step from counting as rejections."""
    estimate, rows = AcceptanceEstimate(AverageAcceptance()), long_rows(3)
    before = newcomer(estimate)
    estimate.observe(StepReport(rows, [4, 4, 0], [-1, -1, 0], 1.0, True))
    assert {estimate.chances(row, 12) for row in rows} == {newcomer(estimate)} == {before}


def test_rows_alike_share_their_numbers() -> None:
    """Stops work that grows with rows times lengths: a decision is on every step's path."""
    estimate, rows = AcceptanceEstimate(AverageAcceptance()), long_rows(32)
    found = estimate.reaching(rows, 6)
    assert len({id(row) for row in found}) == 1
    assert found[0][:2] == pytest.approx([2 / 3, 0.93 * (2 / 3) ** 2], abs=0.01)
