"""How probable an accepted draft token is, row by row, and what follows for a step's tokens."""

from __future__ import annotations

import random

import pytest

from mlx_spec.control.acceptance import AcceptanceEstimate, AverageAcceptance, expected_tokens
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Evidence, room_of
from tests.hardware import adaptive, make_rows


def accept(chance: float, length: int, rng: random.Random) -> int:
    run = 0
    while run < length and rng.random() < chance:
        run += 1
    return run


def test_each_row_has_its_own_acceptance() -> None:
    """Stops an average in place of rows, a bias from runs cut off by the draft length, and a
    newcomer that is taken for the worst or the best.
    """
    estimate, rng = AcceptanceEstimate(AverageAcceptance()), random.Random(1)
    batch, chances = make_rows(99, 99, 99), [0.1, 0.6, 1.0]
    sums = [0.0] * 3
    for step in range(600):
        length = 1 + step % 5
        accepted = [accept(chance, length, rng) for chance in chances]
        estimate.observe(StepReport(batch, [length] * 3, accepted, 1.0, True))
        if step >= 100:
            sums = [a + b for a, b in zip(sums, estimate.chances(batch), strict=True)]
    means = [total / 500 for total in sums]
    assert means == sorted(means)
    assert means == pytest.approx(chances, abs=0.15)
    assert 0.3 < estimate.chances(make_rows(99))[0] < 0.9


def test_undrafted_steps_say_nothing_of_acceptance() -> None:
    """Stops plain steps counted as rejections."""
    estimate, batch = AcceptanceEstimate(AverageAcceptance()), make_rows(99, 99)
    before = estimate.chances(batch)
    for _ in range(50):
        estimate.observe(StepReport(batch, [0, 0], [0, 0], 1.0, True))
    assert estimate.chances(batch) == pytest.approx(before, abs=0.02)


def test_a_result_that_says_nothing_is_not_counted() -> None:
    """Stops rows that had ended before the step from counting as rejections."""
    average = AverageAcceptance()
    estimate, batch = AcceptanceEstimate(average), make_rows(99, 99, 99)
    estimate.observe(StepReport(batch, [4, 4, 0], [-1, -1, 0], 1.0, True))
    assert average.chance == AverageAcceptance().chance
    assert estimate.chances(batch) == [average.chance] * 3


def test_expected_tokens_follow_the_formula() -> None:
    """Stops a sum that forgets the target's own token, or a row's end, or takes one row's
    acceptance for another's.
    """
    a, b, room = 0.7, 0.2, room_of(make_rows(99, 3, 1, 99))
    tokens = expected_tokens([a, a, a, b], room, 4)
    first, second, third = a + a + b, a**2 + a**2 + b**2, a**3 + b**3
    expected = [4, 4 + first, 4 + first + second, 4 + first + second + third]
    assert tokens == pytest.approx([*expected, expected[-1] + a**4 + b**4])
    assert expected_tokens([a], [-1], 3) == [1, 1, 1, 1]  # a row that has ended


class CountedRow:
    """A row that counts what is asked of it."""

    def __init__(self) -> None:
        self._evidence: Evidence | None = None
        self.asked = 0

    @property
    def remaining(self) -> int:
        self.asked += 1
        return 99

    @property
    def evidence(self) -> Evidence | None:
        self.asked += 1
        return self._evidence

    @evidence.setter
    def evidence(self, evidence: Evidence | None) -> None:
        self._evidence = evidence


class CountedChance(float):
    """An acceptance that counts how often it is multiplied with."""

    products = 0

    def __rmul__(self, other: float) -> float:
        CountedChance.products += 1
        return other * float(self)


@pytest.mark.parametrize("most", [2, 8])
def test_a_choice_asks_each_row_once_whatever_the_maximum(most: int) -> None:
    """Stops work that grows with rows times lengths times lengths: a choice is on every step's
    path, between the device's last result and its next work.
    """
    policy = adaptive(most)
    batch = [CountedRow() for _ in range(32)]
    for step in range(40):
        for row in batch:
            row.asked = 0
        lengths = policy.choose(batch)
        # Its room and its evidence, and now and then for a probe's price.
        assert max(row.asked for row in batch) <= 2 + 2 * (step > 5)
        for row in batch:
            row.asked = 0
        policy.observe(StepReport(batch, lengths, [0] * 32, 1.0 + max(lengths), True))
        assert max(row.asked for row in batch) <= 2
    CountedChance.products = 0
    expected_tokens([CountedChance(0.5)] * 32, [99] * 32, most)
    assert CountedChance.products == 32 * most
