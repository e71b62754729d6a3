"""Bugs planted in drafts from hidden states: texts stay what they are, guesses do not stay right.

Exactness cannot see them; that a head which knows everything is always accepted can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.decoding.drafters.head import HeadDrafter
from mlx_spec.decoding.drafters.pairs import Pairs
from mlx_spec.model.heads.slots import HeadSlots
from tests.fakes import CyclingPolicy
from tests.test_head_drafter import chat_goes_on, missed, run

Patch = pytest.MonkeyPatch


def wrong_position(patch: Patch) -> None:
    """The hidden state before the newest one."""
    right = Pairs.tail

    def tail(self: Pairs, most: int) -> Pairs:
        if self.tokens.shape[1] <= most:
            return self
        before = Pairs(self.tokens, mx.roll(self.hidden, 1, axis=1), *fields(self))
        return right(before, most)

    def fields(pairs: Pairs) -> Any:
        return pairs.starts, pairs.counts, pairs.ready, pairs.written

    patch.setattr(Pairs, "tail", tail)


def first_row_for_all(patch: Patch) -> None:
    """What the head made of slot 0 goes on for every row."""
    right = HeadSlots.read

    def read(self: HeadSlots, *args: Any) -> mx.array:
        states = right(self, *args)
        return mx.broadcast_to(states[:1], states.shape)

    patch.setattr(HeadSlots, "read", read)


def rows_stay(patch: Patch) -> None:
    """A row moves, and its keys and values do not."""
    right = HeadSlots.__init__

    def init(self: HeadSlots, *args: Any) -> None:
        right(self, *args)
        self._layers[0].move = lambda sources, slots: []  # type: ignore[method-assign]

    patch.setattr(HeadSlots, "__init__", init)


def pairs_stay(patch: Patch) -> None:
    """A row moves, and its newest pair does not."""
    patch.setattr(Pairs, "rows", lambda self, order: rows_in(self, range(len(order))))


def rows_in(pairs: Pairs, order: Any) -> Pairs:
    kept = mx.array(list(order), mx.int32)
    ready = tuple(pairs.ready[row] for row in order)
    arrays = [one[kept] for one in (pairs.tokens, pairs.hidden, pairs.starts, pairs.counts)]
    return Pairs(arrays[0], arrays[1], arrays[2], arrays[3], ready, pairs.written)


def parked_steps_unread(patch: Patch) -> None:
    """Plain steps write nothing: what lies there is read as though it were something."""
    patch.setattr(HeadDrafter, "skip", lambda self, most=1: None)


def saved_unread(patch: Patch) -> None:
    """A row is saved before its newest pairs are written."""
    right = HeadDrafter.settle

    def settle(self: HeadDrafter) -> None:
        if self.proposing:
            right(self)

    def propose(self: HeadDrafter, *args: Any) -> Any:
        self.proposing = True
        draft = proposed(self, *args)
        self.proposing = False
        return draft

    proposed = HeadDrafter.propose
    patch.setattr(HeadDrafter, "proposing", False, raising=False)
    patch.setattr(HeadDrafter, "skip", lambda self, most=1: right(self))
    patch.setattr(HeadDrafter, "settle", settle)
    patch.setattr(HeadDrafter, "propose", propose)


def chunk_one_token_early(patch: Patch) -> None:
    """A prompt's hidden states beside the tokens that they were read from."""
    right = HeadDrafter.fed

    def fed(self: HeadDrafter, chunk: Any) -> None:
        object.__setattr__(chunk, "following", chunk.rows.tokens)
        right(self, chunk)

    patch.setattr(HeadDrafter, "fed", fed)


MUTANTS: list[Callable[[Patch], None]] = [
    wrong_position,
    first_row_for_all,
    rows_stay,
    pairs_stay,
    parked_steps_unread,
    saved_unread,
    chunk_one_token_early,
]


@pytest.mark.parametrize("plant", MUTANTS)
def test_a_planted_bug_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """Texts stay what they are, which ``run`` checks; guesses do not stay right."""
    plant(monkeypatch)
    in_turn = plant is saved_unread  # ahead, another step has always been proposed for meanwhile
    assert missed(run(CyclingPolicy([4, 0, 3, 0, 2, 1]), preempt=9, in_turn=in_turn)) > 0


def test_what_a_text_left_unread_is_noticed(monkeypatch: Patch) -> None:
    saved_unread(monkeypatch)
    made, _ = chat_goes_on()
    assert missed(made) > 0
