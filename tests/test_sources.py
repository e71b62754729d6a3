"""Choosing among drafters by what they bring and cost, over simulated hardware."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDraftLength
from mlx_spec.control.offers import NOBODY, FixedSources, Offer, SourceChoice
from mlx_spec.control.report import StepReport
from mlx_spec.control.shared import PairMeasurements
from mlx_spec.control.sources import AdaptiveSources
from mlx_spec.control.turns import Turns
from tests.hardware import make_rows

MOST = 6
CONFIG = SpeculationConfig(num_draft_tokens=MOST)


def flat(width: int) -> float:
    """A wider pass costs next to nothing, as on a GPU that is not full."""
    return 1.0 + 0.01 * width


def half(width: int) -> float:
    """Each token costs about half as much as the first."""
    return 1.0 + 0.4 * width


def steep(width: int) -> float:
    """Each token costs as much as the first."""
    return float(width)


@dataclass
class Drafting:
    """What drafters find and how it turns out.

    Attributes:
        rows: how many.
        verify: seconds of a pass of so many tokens a row.
        draft: seconds of one draft token of the costly drafter.
        right: how often a guess of it is right.
        found: (rows with a guess, how likely it says that each token is, how likely it is).
    """

    rows: int = 4
    verify: Callable[[int], float] = flat
    draft: float = 0.3
    right: float = 0.7
    found: tuple[int, float, float] = (0, 0.0, 0.0)
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def run(self, choice: SourceChoice, steps: int, costly: bool = True) -> list[dict[str, int]]:
        """Steps; of each how many rows took whose guess, and "tokens"."""
        rows, told = make_rows(*[10**9] * self.rows), []
        for _ in range(steps):
            planned = choice.choose(rows)
            many, said, true = self.found
            offers = []
            if max(planned) and many and choice.free:
                lengths = [MOST if row < many else 0 for row in range(self.rows)]
                offers = [Offer("ngram", lengths, [[said] * n for n in lengths])]
            settled = choice.settle(rows, offers, [costly] * self.rows)
            names = [
                "" if not n else "model" if pick == NOBODY else "ngram"
                for n, pick in zip(settled.lengths, settled.picks, strict=True)
            ]
            chance = {"": 0.0, "model": self.right, "ngram": true}
            accepted = [
                self._run(chance[by], n) for by, n in zip(names, settled.lengths, strict=True)
            ]
            own = [n for by, n in zip(names, settled.lengths, strict=True) if by == "model"]
            seconds = self.verify(1 + max(settled.lengths)) + self.draft * max(own, default=0)
            assert (not own) or settled.costly
            report = StepReport(rows, settled.lengths, accepted, seconds, True, sources=names)
            choice.observe(report)
            told.append({name: names.count(name) for name in ("", "model", "ngram")})
        return told

    def _run(self, chance: float, length: int) -> int:
        run = 0
        while run < length and self.random.random() < chance:
            run += 1
        return run


def adaptive(costly: bool = True) -> AdaptiveSources:
    policies = {"model": AdaptiveDraftLength(CONFIG, None, "model")} if costly else {}
    return AdaptiveSources(CONFIG, PairMeasurements(), policies, lambda: True)


def share(told: list[dict[str, int]], name: str, last: int = 100) -> float:
    return sum(step[name] for step in told[-last:]) / sum(
        sum(step.values()) for step in told[-last:]
    )


def test_what_is_found_is_taken_while_it_pays_and_again_when_it_does() -> None:
    """A drafter that says 0.9 and is right one time in ten, where width is dear."""
    choice = adaptive(costly=False)
    drafting = Drafting(verify=half, found=(4, 0.9, 0.97))
    assert share(drafting.run(choice, 200), "ngram") > 0.7
    drafting.found = (4, 0.9, 0.05)
    assert share(drafting.run(choice, 600), "ngram") < 0.15
    drafting.found = (4, 0.9, 1.0)
    assert share(drafting.run(choice, 800), "ngram") > 0.7


def test_no_drafter_is_throttled_by_another() -> None:
    """One that is never right, beside one that always is, either way round; width is free."""
    hopeless = Drafting(draft=0.4, right=0.02, found=(2, 0.9, 0.9))
    told = hopeless.run(adaptive(), 400)
    assert share(told, "ngram") > 0.4
    assert share(told, "model") < 0.1
    lying = Drafting(verify=steep, draft=0.01, right=0.99, found=(2, 0.9, 0.02))
    assert share(lying.run(adaptive(), 600), "model") > 0.8


def test_each_row_takes_what_brings_more() -> None:
    told = Drafting(draft=0.05, right=0.8, found=(2, 0.95, 0.95)).run(adaptive(), 400)
    assert share(told, "ngram") == pytest.approx(0.5, abs=0.1)
    assert share(told, "model") > 0.35


def test_one_row_that_lacks_a_guess_does_not_make_all_wait_for_the_dear_drafter() -> None:
    drafting = Drafting(rows=16, draft=0.5, right=0.7, found=(15, 0.9, 0.9))
    assert share(drafting.run(adaptive(), 400), "model") < 0.02
    cheap = Drafting(rows=16, draft=0.001, right=0.7, found=(15, 0.9, 0.9))
    assert share(cheap.run(adaptive(), 400), "model") > 0.04


def test_fixed_means_fixed() -> None:
    """Whatever comes of it: all that is found, and the same length for the rows that lack."""
    choice = FixedSources(MOST, ["model"])
    told = Drafting(verify=steep, draft=9.0, right=0.0, found=(3, 0.9, 0.0)).run(choice, 50)
    assert all(step == {"": 0, "model": 1, "ngram": 3} for step in told)
    all_found = Drafting(found=(4, 0.9, 0.0)).run(FixedSources(MOST, ["model"]), 50)
    assert all(step["ngram"] == 4 for step in all_found)


def test_a_certain_offer_rules_the_others_out() -> None:
    choice: Any = adaptive()
    rows = make_rows(99, 99)
    choice.choose(rows)
    offers = [
        Offer("forced", [1, 0], [[1.0], []]),
        Offer("ngram", [4, 4], [[0.9] * 4, [0.9] * 4]),
    ]
    assert choice.settle(rows, offers, [True, True]).picks == [0, 1]


def test_a_dropped_step_changes_nothing() -> None:
    choice = adaptive()
    Drafting(found=(2, 0.9, 0.9)).run(choice, 60)
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
