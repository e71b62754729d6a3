"""Runs a mixer again, over what was noted, to the states after some of its tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import mlx.core as mx

from mlx_spec.cache.row_states import choose
from mlx_spec.model.recurrence.mixer import MixerCall, Notes, States, own_class
from mlx_spec.model.recurrence.row_ends import told_row_ends


@dataclass(frozen=True)
class Kept:
    """How much of a call stays.

    Attributes:
        counts: [rows] int32, the first tokens of each row that are kept.
        tokens: [rows, N] booleans, the same token by token.
    """

    counts: mx.array
    tokens: mx.array


class Way(Enum):
    """How a mixer is run again."""

    MASKED = "all tokens at once, with a mask that its code honours"
    TOLD = "the same, and what its code calls is told where rows end"
    ONE_BY_ONE = "one token after the other"


def run_again(call: MixerCall, notes: Notes, before: States, kept: Kept, way: Way) -> States:
    """States after the tokens of a call that are kept, lazily.

    Args:
        call: the mixer and its arguments.
        notes: what its children gave.
        before: the states that it read.
        kept: a row that keeps nothing gets any numbers.
        way: one that is known to be right.
    """
    if way is Way.ONE_BY_ONE:
        return _one_by_one(call, notes, before, kept)
    cls = told_row_ends(own_class(type(call.module))) if way is Way.TOLD else None
    if cls is not None:
        call = replace(call, code=cls.__call__)
    mask = {"mask": kept.tokens} if "mask" in call.values else {}
    own, cache = call.stand_at(before, lengths=kept.counts)
    call.run(call.clone(notes.give(), cls), cache, **mask)
    return list(own.cache)


def _one_by_one(call: MixerCall, notes: Notes, before: States, kept: Kept) -> States:
    states = before
    for index in range(call.shape[1]):
        own, cache = call.stand_at(states, index)
        call.run(call.clone(notes.give(index)), cache, **call.token(index))
        # A row that is asked for keeps its first token.
        states = select(kept.tokens[:, index], own.cache, states) if index else list(own.cache)
    return states


def select(rows: mx.array, some: States, others: States) -> States:
    """``some`` states for [rows], the ``others`` for the rest."""
    return [
        new if new is old else choose(rows, new, old) for new, old in zip(some, others, strict=True)
    ]
