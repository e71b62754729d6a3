"""Masks for which a step has no time: their rows say nothing in it, the others go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from mlx_spec.decoding import step
from mlx_spec.sequence import Sequence
from mlx_spec.structured import masks
from tests.structured_runs import constraints, invalid, run

Patch = pytest.MonkeyPatch
ROWS = 4


@pytest.fixture(autouse=True)
def no_time(monkeypatch: Patch) -> None:
    """For one mask a step, behind what was emitted."""
    monkeypatch.setattr(masks, "FIRST_SECONDS", -1.0)
    monkeypatch.setattr(masks, "_AT_ONCE", 1)


def watched(monkeypatch: Patch) -> list[list[int]]:
    """How long each row has waited, step by step."""
    seen: list[list[int]] = []
    right = masks._begun

    def noting(walks: Any, seconds: float) -> Any:
        made = right(walks, seconds)
        seen.append([walk.guide.waited for walk in walks])
        return made

    monkeypatch.setattr(masks, "_begun", noting)
    return seen


@pytest.mark.parametrize("drafted", [False, True])
def test_texts_are_the_same(drafted: bool, monkeypatch: Patch) -> None:
    """Rows that come and go, one preempted now and then; nobody waits longer than for its turn."""
    seen = watched(monkeypatch)
    wanted = constraints(24)
    _, made = run(wanted, drafted=drafted, preempting=7)
    assert [row.tokens for row in made] == said(24)
    assert invalid(wanted, made) == []
    assert max(map(max, seen)) < 2 * ROWS  # one that was away may meet others who waited
    assert any(sum(map(bool, waited)) == ROWS - 1 for waited in seen)
    if drafted:
        assert sum(row.accepted for row in made) > 0


def test_other_rows_do_not_wait(monkeypatch: Patch) -> None:
    """Three rows with a constraint take turns; a plain one gains a token in every step."""
    seen = watched(monkeypatch)
    wanted = [None, *constraints(12)]
    _, made = run(wanted, drafted=False)
    assert made[0].steps == len(made[0].tokens)
    assert [row.tokens for row in made] == [row.tokens for row in alone(wanted)]
    assert max(map(max, seen)) >= ROWS - 2


def alone(wanted: Any) -> list[Sequence]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "FIRST_SECONDS", 100.0)
        return run(wanted, drafted=False)[1]


@cache
def said(count: int) -> list[list[int]]:
    return [row.tokens for row in alone(constraints(count))]


def never_their_turn(patch: Patch) -> None:
    """Who has waited comes last again."""

    def planted(walks: Any, key: Any) -> Any:
        return list(walks)

    patch.setattr(masks, "sorted", planted, raising=False)


def late_rows_speak(patch: Patch) -> None:
    """What the target says without a mask is taken."""
    right = step.Proposal.judged

    def planted(self: Any, by: Any) -> Any:
        return replace(right(self, by), late=())

    patch.setattr(step.Proposal, "judged", planted)


@pytest.mark.parametrize("plant", [never_their_turn, late_rows_speak])
def test_a_planted_bug_shows(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    seen = watched(monkeypatch)
    wanted = constraints(12)
    made = [row.tokens for row in run(wanted, drafted=False)[1]]
    assert made != said(12) or max(map(max, seen)) >= 2 * ROWS
