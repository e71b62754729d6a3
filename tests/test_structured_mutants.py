"""Planted bugs in how a grammar is followed: each is red with drafts, joins and preemptions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.rules import grammar
from mlx_spec.structured.guide import Guide
from mlx_spec.structured.masks import _Walk, fill_masks
from tests.structured_runs import constraints, invalid, knowing, run

Patch = pytest.MonkeyPatch
COUNT = 16


@cache
def said() -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row.tokens) for row in plain())


@cache
def plain() -> Any:
    return run(constraints(COUNT), rows=8, drafted=False)[1]


def right() -> bool:
    """Whether all is as without drafts, and as the constraints have it."""
    try:
        made = run(constraints(COUNT), drafter=knowing(plain()), preempting=5)[1]
    except AssertionError:  # no progress
        return False
    same = tuple(tuple(row.tokens) for row in made) == said()
    return same and not invalid(constraints(COUNT), made)


def masks(patch: Patch, spoil: Callable[[Any], Any]) -> None:
    def planted(guides: Any, guesses: Any, seconds: float) -> Any:
        filled = fill_masks(guides, guesses, seconds)
        return replace(filled, words=np.ascontiguousarray(spoil(filled.words)))

    patch.setattr(grammar, "fill_masks", planted)


def the_neighbours_mask(patch: Patch) -> None:
    """Each row is masked by the grammar of the row before."""
    masks(patch, lambda words: np.roll(words, 1, axis=0))


def the_mask_of_the_position_before(patch: Patch) -> None:
    """The mask behind j guesses is used behind j + 1."""
    masks(patch, lambda words: np.concatenate([words[:, :1], words[:, :-1]], axis=1))


def only_the_first_position_masked(patch: Patch) -> None:
    masks(patch, lambda words: np.where(np.arange(words.shape[1])[:, None] > 0, -1, words))


def rejected_guesses_followed(patch: Patch) -> None:
    """The grammar is not taken back behind what the target refuses."""

    def planted(guides: Any, guesses: Any, seconds: float) -> Any:
        filled = fill_masks(guides, guesses, seconds)
        for guide, guess in zip(guides, guesses, strict=True):
            guide.follow([*guide._followed, *guess])
        return filled

    patch.setattr(grammar, "fill_masks", planted)


def lost_by_a_preemption(patch: Patch) -> None:
    """Who comes back begins its grammar anew."""
    suspend = SpeculativeDecoder.suspend

    def planted(self: SpeculativeDecoder, sequence: Any, *, save: bool) -> None:
        suspend(self, sequence, save=save)
        guide = sequence.guide
        fresh = Guide(guide._start, guide._vocabulary)
        fresh._followed = list(sequence.tokens)  # and takes what was said for followed
        sequence.guide = fresh

    patch.setattr(SpeculativeDecoder, "suspend", planted)


def one_guess_too_many_is_compared(patch: Patch) -> None:
    """The last guess that there was no time for: what the target says behind it is not masked."""
    hurried(patch)
    stop = _Walk.stop

    def planted(self: _Walk) -> None:
        stop(self)
        self.counted = self.tested = self.place + 1

    patch.setattr(_Walk, "stop", planted)


def hurried(patch: Patch) -> None:
    """The time for guesses is up at any moment."""
    rng = random.Random(0)
    clock = SimpleNamespace(perf_counter=lambda: rng.choice([0, 0, 0, 1]))
    patch.setattr("mlx_spec.structured.masks.time", clock)


def test_guesses_that_there_is_no_time_for_are_none(monkeypatch: Patch) -> None:
    said()
    hurried(monkeypatch)
    assert right()


def test_masks_by_several_threads_are_the_same(monkeypatch: Patch) -> None:
    """As with four cores and more, and with the time up in between."""
    said()
    monkeypatch.setattr("mlx_spec.structured.masks._AT_ONCE", 3)
    hurried(monkeypatch)
    assert right()


def test_without_any_time_nothing_constrained_is_guessed(monkeypatch: Patch) -> None:
    said()
    monkeypatch.setattr(
        grammar, "fill_masks", lambda guides, guesses, seconds: fill_masks(guides, guesses, -1.0)
    )
    made = run(constraints(COUNT), drafter=knowing(plain()))[1]
    assert tuple(tuple(row.tokens) for row in made) == said()
    assert sum(row.drafted for row in made) == 0


@pytest.mark.parametrize(
    "plant",
    [
        the_neighbours_mask,
        the_mask_of_the_position_before,
        only_the_first_position_masked,
        rejected_guesses_followed,
        lost_by_a_preemption,
        one_guess_too_many_is_compared,
    ],
)
def test_a_planted_bug_shows(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    said()  # before the bug is there
    plant(monkeypatch)
    assert not right()


def test_without_one_all_is_right() -> None:
    assert right()
