"""Planted bugs in how a grammar is followed: each is red with drafts, joins and preemptions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.rules import grammar
from mlx_spec.structured.guide import Guide
from mlx_spec.structured.masks import fill_masks
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
    def planted(guides: Any, guesses: Any) -> Any:
        words, counts = fill_masks(guides, guesses)
        return np.ascontiguousarray(spoil(words)), counts

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

    def planted(guides: Any, guesses: Any) -> Any:
        filled = fill_masks(guides, guesses)
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


@pytest.mark.parametrize(
    "plant",
    [
        the_neighbours_mask,
        the_mask_of_the_position_before,
        only_the_first_position_masked,
        rejected_guesses_followed,
        lost_by_a_preemption,
    ],
)
def test_a_planted_bug_shows(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    said()  # before the bug is there
    plant(monkeypatch)
    assert not right()


def test_without_one_all_is_right() -> None:
    assert right()
