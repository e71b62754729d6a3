"""What steps cost: tokens of a pass, guesses, and what is learned of both from whole steps."""

from __future__ import annotations

import random

import pytest

from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.control.report import StepReport
from mlx_spec.control.step_prices import DraftPrice, StepPrices
from scripts.simulated.play import SimulatedRow

TARGET = {1: 0.10, 8: 0.13, 12: 0.19, 16: 0.128, 32: 0.2}
DRAFT = {1: 0.01, 8: 0.012, 32: 0.02}


def costs(points: dict[int, float], key: float = 0.0) -> PassCosts:
    made = PassCosts()
    made.put(points, key=key)
    return made


def prices(*, packs: bool = True, first: int = 1) -> StepPrices:
    drafts = {"model": DraftPrice(costs(DRAFT), first), "ngram": DraftPrice()}
    return StepPrices(costs(TARGET, 1e-6), drafts, packs=packs)


def report(
    rows: int, tokens: int, seconds: float, passes: dict[str, int] | None = None, keys: int = 0
) -> StepReport:
    none, made, by = [0] * rows, [SimulatedRow(9)] * rows, passes or {}
    return StepReport(made, none, none, seconds, True, tokens=tokens, passes=by, keys=keys)


def test_tokens_of_a_pass() -> None:
    assert prices(packs=True).tokens([3, 0, 1, 5]) == 16  # 13, padded to what is cheaper
    assert prices(packs=True).tokens([1, 0]) == 3
    assert prices(packs=False).tokens([3, 0, 1, 5]) == 24
    assert prices(packs=False).tokens([0, 0]) == 2


def test_curves_are_the_cheapest_passes_with_room() -> None:
    made = prices()
    curve = made.curve(8, 16, keys=5000)
    assert len(curve) == 17
    assert all(later > 0.96 * curve[0] for later in curve)
    # 12 tokens in a pass of 16; each of the 12 reads the keys of its row.
    assert curve[4] == pytest.approx(0.128 + 1.5 * 0.005)
    assert curve[0] == pytest.approx(made.verify(8, 8, 5000))
    before = made.curve(8, 16)
    for _ in range(30):
        made.observe(report(16, 16, 0.3))
    after = made.curve(8, 16)
    assert after[8] == pytest.approx(0.3, rel=0.03)
    assert before[8] == pytest.approx(0.128)


def test_rectangles_of_models_that_do_not_pack() -> None:
    made = prices(packs=False)
    made.target.put({8: 0.4, 32: 0.5}, width=4)
    assert made.verify(8, 2) == pytest.approx(0.4)
    assert made.verify(8, 8) == pytest.approx(0.13)
    assert made.curve(2, 6)[6] == pytest.approx(0.4)


def test_drafts() -> None:
    made = prices(first=2)
    assert made.draft("model", 4, 0) == 0.0
    one = costs(DRAFT)
    assert made.draft("model", 4, 3) == pytest.approx(one.usual(8) + 2 * one.usual(4))
    assert 0 < made.draft("ngram", 4, 3) < 0.02 * made.verify(4, 4)
    assert made.draft("ngram", 4, 6) == made.draft("ngram", 4, 3)
    assert made.draft("somebody's own", 4, 3) == made.draft("ngram", 4, 3)


def test_steps_tell_a_dear_draft_from_a_dear_pass() -> None:
    made, rng = prices(), random.Random(1)
    for _ in range(40):
        made.observe(report(8, 8, 0.13 * rng.lognormvariate(0, 0.02)))
    for _ in range(40):
        seconds = 0.128 + 2 * 0.03  # a guess costs two and a half times what was timed
        noise = rng.lognormvariate(0, 0.02)
        made.observe(report(8, 16, seconds * noise, passes={"model": 2}))
        made.observe(report(8, 8, 0.13 * noise))
    # Passes of 16 tokens come with drafts alone here, so it is not quite known which it is.
    whole = made.draft("model", 8, 2) + made.verify(16, 8)
    assert whole == pytest.approx(0.188, rel=0.05)
    assert made.draft("model", 8, 2) == pytest.approx(0.06, rel=0.3)
    assert made.verify(8, 8) == pytest.approx(0.13, rel=0.05)


def test_a_drafter_that_nobody_timed_is_found_out() -> None:
    made = prices()
    for _ in range(40):
        made.observe(report(8, 8, 0.13))
        made.observe(report(8, 16, 0.128 + 0.05, passes={"own": 2}))
    together = made.draft("own", 8, 2) + made.verify(16, 8)
    assert together == pytest.approx(0.178, rel=0.05)


def test_each_token_reads_the_keys_of_its_row() -> None:
    made, key = prices(), 4e-6  # four times what was thought
    for _ in range(40):
        for tokens, plain in ((8, 0.13), (32, 0.2)):
            seconds = plain + key * tokens * 2000
            made.observe(report(8, tokens, seconds, keys=8 * 2000))
    assert made.verify(8, 8, 16_000) == pytest.approx(0.13 + 0.064, rel=0.05)
    assert made.verify(16, 8, 16_000) == pytest.approx(0.128 + 0.128, rel=0.1)
    assert made.verify(32, 8, 16_000) == pytest.approx(0.2 + 0.256, rel=0.05)


def test_all_prices_follow_the_speed_of_the_machine() -> None:
    made = prices()
    before = made.draft("model", 8, 2)
    for _ in range(30):
        made.observe(report(8, 8, 0.26))
    assert made.draft("model", 8, 2) == pytest.approx(2 * before, rel=0.1)


def test_steps_that_did_other_work_say_nothing() -> None:
    made = prices()
    rows = [SimulatedRow(9), SimulatedRow(9)]
    for _ in range(9):
        made.observe(StepReport(rows, [0, 0], [0, 0], 9.0, False, tokens=2))
    assert made.verify(8, 8) == pytest.approx(0.13)


def test_what_was_never_timed_is_not_known() -> None:
    made = StepPrices(PassCosts())
    assert not made.known
    assert prices().known
