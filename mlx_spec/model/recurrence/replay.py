"""Runs a mixer again, over what was noted, to the states after some of its tokens."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_spec.model.recurrence.mixer import MixerCall, Notes, States


def run_again(
    call: MixerCall, notes: Notes, before: States, kept: mx.array, *, masked: bool
) -> States:
    """States after each row's first ``kept`` [rows] tokens of a call that was noted, lazily.

    Args:
        call: the mixer and its arguments.
        notes: what its children gave.
        before: the states that it read.
        kept: 0 leaves any states that are numbers where ``before`` are.
        masked: all tokens at once with a mask, which the mixer must honour; else one by one.
    """
    return (_masked if masked else _one_by_one)(call, notes, before, kept)


def _masked(call: MixerCall, notes: Notes, before: States, kept: mx.array) -> States:
    changes: dict[str, Any] = {}
    if "mask" in call.values:
        changes["mask"] = mx.arange(call.shape[1]) < kept[:, None]
    own, cache = call.stand_at(before, lengths=kept)
    call.run(call.clone(notes.give()), cache, **changes)
    return list(own.cache)


def _one_by_one(call: MixerCall, notes: Notes, before: States, kept: mx.array) -> States:
    states = before
    for index in range(call.shape[1]):
        own, cache = call.stand_at(states, index)
        call.run(call.clone(notes.give(index)), cache, **call.token(index))
        # The first token is kept, or the row is not asked for.
        states = own.cache if index == 0 else select(index < kept, own.cache, states)
    return states


def select(rows: mx.array, some: States, others: States) -> States:
    """``some`` states for [rows], the ``others`` for the rest."""
    return [
        new if new is old else mx.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        for new, old in zip(some, others, strict=True)
    ]
