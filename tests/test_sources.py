"""Choosing among drafters by what they bring and cost: one budget for all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.drafting import CostlyDraft
from mlx_spec.control.offers import NOBODY, FixedSources, Offer, SourceChoice
from mlx_spec.control.report import StepReport
from mlx_spec.control.shared import PairMeasurements
from mlx_spec.control.turns import Turns
from scripts.simulated.machines import DRAFTER, Machine, TruePrices
from tests.policies import make_rows

MOST = 6
CONFIG = SpeculationConfig(num_draft_tokens=MOST)


def flat(draft: float) -> Machine:
    """A wider pass costs next to nothing, as on a GPU that is not full."""
    return Machine("flat", lambda m: 1.0 + 0.0025 * m, lambda b: draft)


def half(draft: float = 0.3) -> Machine:
    """Each token costs about half as much as the first."""
    return Machine("half", lambda m: 0.6 + 0.1 * m, lambda b: draft)


def steep(draft: float = 0.3) -> Machine:
    """Each token costs as much as the first."""
    return Machine("steep", lambda m: 0.25 * m, lambda b: draft)


@dataclass
class Drafting:
    """What drafters find and how it turns out.

    Attributes:
        machine: what steps cost.
        rows: how many.
        right: how often a guess of the costly drafter is right.
        found: (rows with a guess, how likely it says that each token is, how likely it is).
    """

    machine: Machine
    rows: int = 4
    right: float = 0.7
    found: tuple[int, float, float] = (0, 0.0, 0.0)
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def run(self, choice: SourceChoice, steps: int, costly: bool = True) -> list[dict[str, int]]:
        """Steps; of each how many rows took whose guess."""
        rows, told = make_rows(*[10**9] * self.rows), []
        prices = TruePrices(self.machine)
        for _ in range(steps):
            planned = choice.choose(rows)
            many, said, true = self.found
            offers = []
            if max(planned) and many and choice.free:
                lengths = [MOST if row < many else 0 for row in range(self.rows)]
                offers = [Offer("ngram", lengths, [[said] * n for n in lengths])]
            settled = choice.settle(rows, offers, [costly] * self.rows)
            names = [
                "" if not n else DRAFTER if pick == NOBODY else "ngram"
                for n, pick in zip(settled.lengths, settled.picks, strict=True)
            ]
            chance = {"": 0.0, DRAFTER: self.right, "ngram": true}
            accepted = [
                self._run(chance[by], n) for by, n in zip(names, settled.lengths, strict=True)
            ]
            own = max(
                n if by == DRAFTER else 0 for by, n in zip(names, settled.lengths, strict=True)
            )
            tokens = prices.tokens(settled.lengths)
            seconds = self.machine.seconds(self.rows, tokens, own)
            assert (not own) or settled.costly
            choice.observe(
                StepReport(
                    rows,
                    settled.lengths,
                    accepted,
                    seconds,
                    clean=True,
                    sources=names,
                    tokens=tokens,
                    passes={DRAFTER: own} if own else {},
                )
            )
            told.append({name: names.count(name) for name in ("", DRAFTER, "ngram")})
        return told

    def _run(self, chance: float, length: int) -> int:
        run = 0
        while run < length and self.random.random() < chance:
            run += 1
        return run

    def choice(
        self, costly: bool = True, asks: Callable[[], bool] = lambda: True
    ) -> AdaptiveDrafts:
        """A policy that knows what steps cost."""
        prices = TruePrices(self.machine)
        drafters = [CostlyDraft(DRAFTER, MOST, prices, PairMeasurements())] if costly else []
        return AdaptiveDrafts(CONFIG, prices, drafters, asks=asks)


def share(told: list[dict[str, int]], name: str, last: int = 100) -> float:
    return sum(step[name] for step in told[-last:]) / sum(
        sum(step.values()) for step in told[-last:]
    )


def test_what_is_found_is_taken_while_it_pays_and_again_when_it_does() -> None:
    """A drafter that says 0.9 and is right one time in twenty, where width is dear."""
    drafting = Drafting(half(), found=(4, 0.9, 0.97))
    choice = drafting.choice(costly=False)
    assert share(drafting.run(choice, 200), "ngram") > 0.7
    drafting.found = (4, 0.9, 0.05)
    assert share(drafting.run(choice, 600), "ngram") < 0.15
    drafting.found = (4, 0.9, 1.0)
    assert share(drafting.run(choice, 800), "ngram") > 0.7


def test_no_drafter_is_throttled_by_another() -> None:
    """One that is never right, beside one that always is, either way round; width is free."""
    hopeless = Drafting(flat(0.4), right=0.02, found=(2, 0.9, 0.9))
    told = hopeless.run(hopeless.choice(), 400)
    assert share(told, "ngram") > 0.4
    assert share(told, DRAFTER) < 0.1
    lying = Drafting(half(0.01), right=0.99, found=(2, 0.9, 0.02))
    assert share(lying.run(lying.choice(), 600), DRAFTER) > 0.8


def test_each_row_takes_what_brings_more() -> None:
    drafting = Drafting(flat(0.05), right=0.8, found=(2, 0.95, 0.95))
    told = drafting.run(drafting.choice(), 400)
    assert share(told, "ngram") == pytest.approx(0.5, abs=0.1)
    assert share(told, DRAFTER) > 0.35


def test_one_row_that_lacks_a_guess_does_not_make_all_wait_for_the_dear_drafter() -> None:
    drafting = Drafting(flat(0.5), rows=16, right=0.7, found=(15, 0.9, 0.9))
    assert share(drafting.run(drafting.choice(), 400), DRAFTER) < 0.02
    cheap = Drafting(flat(0.001), rows=16, right=0.7, found=(15, 0.9, 0.9))
    assert share(cheap.run(cheap.choice(), 400), DRAFTER) > 0.04


def test_one_found_guess_widens_nobody_elses_pass() -> None:
    """Stops the rectangle: one row's six tokens cost six, not six for each of sixteen rows."""
    drafting = Drafting(half(), rows=16, found=(1, 0.95, 0.95))
    choice = drafting.choice(costly=False)
    told = drafting.run(choice, 100)
    assert share(told, "ngram") == pytest.approx(1 / 16, abs=0.01)


def test_fixed_means_fixed() -> None:
    """Whatever comes of it: all that is found, and the same length for the rows that lack."""
    drafting = Drafting(steep(9.0), right=0.0, found=(3, 0.9, 0.0))
    told = drafting.run(FixedSources(MOST, [DRAFTER]), 50)
    assert all(step == {"": 0, DRAFTER: 1, "ngram": 3} for step in told)
    drafting.found = (4, 0.9, 0.0)
    assert all(step["ngram"] == 4 for step in drafting.run(FixedSources(MOST, [DRAFTER]), 50))


def test_a_certain_offer_rules_the_others_out() -> None:
    choice: Any = Drafting(flat(0.3), rows=2).choice()
    rows = make_rows(99, 99)
    choice.choose(rows)
    offers = [
        Offer("forced", [1, 0], [[1.0], []]),
        Offer("ngram", [4, 4], [[0.9] * 4, [0.9] * 4]),
    ]
    assert choice.settle(rows, offers, [True, True]).picks == [0, 1]


def test_offers_that_are_never_worth_it_are_not_asked_for() -> None:
    """Stops steps from being taken in turn for guesses that nobody verifies."""
    drafting = Drafting(steep(), found=(4, 0.3, 0.3))
    choice = drafting.choice(costly=False)
    asked = 0
    for _ in range(40):
        drafting.run(choice, 5)
        asked += choice.free
    assert asked < 25


def test_a_dropped_step_changes_nothing() -> None:
    drafting = Drafting(flat(0.3), found=(2, 0.9, 0.9))
    choice = drafting.choice()
    drafting.run(choice, 60)
    rows = make_rows(99, 99, 99, 99)
    first = choice.choose(rows)
    choice.forget()
    assert choice.choose(rows) == first


def test_turns_go_to_the_unknown_then_to_the_better_and_now_and_then_to_the_other() -> None:
    turns = Turns(["a", "b"], 4)
    promised: dict[str, float | None] = {"a": 1.0, "b": None}
    used = []
    for _ in range(4 * 40):
        turns.step(promised.get)
        used.append(turns.next)
        if turns.next == "b":
            promised["b"] = 0.5
    assert used[:4] == ["a", "a", "a", "b"]
    assert used[8:40] == ["a"] * 32
    assert used.count("b") > 4
    promised["b"] = 2.0
    for _ in range(8):
        turns.step(promised.get)
    assert turns.next == "b"
