"""Finds out by numbers how a mixer can be run again: one mixer of each class, a few random tokens.

What counts is what a row's states are when it is decoded alone, token by token; each way of getting
there at once is held against that, for rows that keep one, some and all of their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlx_spec.model.materialize import materialize
from mlx_spec.model.recurrence.mixer import MixerCall, Notes, States
from mlx_spec.model.recurrence.replay import Kept, Way, run_again, select
from mlx_spec.model.recurrence.trace import ROWS, WIDTH

# Of the largest number in a state: what roundings may come to. A token too many or too few changes
# a state by far more.
TOLERANCE, TOLERANCE_16_BITS = 1e-3, 4e-2
KEPT = (1, 3, WIDTH)


@dataclass(frozen=True)
class MixerProbe:
    """What was found of mixers of one class.

    Attributes:
        way: how running them again, over what was noted, gives the right states; None: in no way.
        pads: rows of different lengths may share a call of the model.
        zeros: a state of zeros is the same as none.
    """

    way: Way | None
    pads: bool
    zeros: bool


def probe(traced: MixerCall) -> MixerProbe:
    """Try one mixer.

    Args:
        traced: a call of ``ROWS`` rows and ``WIDTH`` tokens, with random arguments.

    Raises:
        UnsupportedModel: its weights were described by another thread and not computed.
    """
    materialize(traced.module)
    told = "mask" not in traced.values or _is_of_states(traced.values["mask"])
    call = _unmasked(traced)
    before = _after(call, [None] * call.size)
    notes = Notes(call)
    _after(call, before, call.clone(notes.take))
    wanted = _decoded(call, before)
    right = [way for way in Way if _near(_tried(call, notes, before, way), wanted)]
    if not _tell_apart(wanted, _after(call, before)):
        right = [way for way in right if way is Way.ONE_BY_ONE]
    return MixerProbe(
        way=right[0] if right else None,
        pads=Way.MASKED in right and told,
        zeros=_begins_with_zeros(call, before),
    )


def _is_of_states(mask: Any) -> bool:
    """Whether a mask was made by the states, of rows and tokens, not by attention."""
    return isinstance(mask, mx.array) and mask.shape == (ROWS, WIDTH)


def _unmasked(call: MixerCall) -> MixerCall:
    """The call as it is where all rows are full."""
    if not _is_of_states(call.values.get("mask")):
        return call
    return replace(call, values={**call.values, "mask": None})


def _after(call: MixerCall, states: States, clone: Any = None) -> States:
    """States after a whole call."""
    own, cache = call.stand_at(states)
    call.run(call.module if clone is None else clone, cache)
    return list(own.cache)


def _decoded(call: MixerCall, before: States) -> States:
    """States after the tokens that are kept, each of which came alone."""
    states, kept = before, mx.array(KEPT)
    for index in range(WIDTH):
        own, cache = call.stand_at(states, index)
        call.run(call.module, cache, **call.token(index))
        states = select(index < kept, own.cache, states)
    return states


def _begins_with_zeros(call: MixerCall, known: States) -> bool:
    """Whether outputs and states from zeros are those from none."""
    none: States = [None] * call.size
    zeros: States = [None if state is None else mx.zeros_like(state) for state in known]
    runs = []
    for states in (none, zeros):
        own, cache = call.stand_at(states)
        output = call.run(call.module, cache)
        outputs = output if isinstance(output, tuple) else (output,)
        runs.append([*outputs, *own.cache])
    return _near(*runs)


def _tried(call: MixerCall, notes: Notes, before: States, way: Way) -> States | None:
    """What a way gives; None where the mixer's code refuses it."""
    try:
        counts = mx.array(KEPT)
        kept = Kept(counts, mx.arange(WIDTH) < counts[:, None])
        states = run_again(call, notes, before, kept, way)
        mx.eval(states)
    except Exception:  # whatever the code of a model raises: another way is tried
        return None
    return states


def _near(found: States | None, wanted: States) -> bool:
    """Whether states are the same but for roundings."""
    return found is not None and all(
        state is other or (state.shape == other.shape and _off(state, other) < _tolerance(other))
        for state, other in zip(found, wanted, strict=True)
    )


def _tell_apart(some: States, whole: States) -> bool:
    """Whether it shows in every state that the first row keeps one token, not all.

    It does not where weights are zeros, and then nothing was found out of masks.
    """
    return all(
        state is other or _off(state[:1], other[:1]) > 5 * _tolerance(other)
        for state, other in zip(some, whole, strict=True)
    )


def _off(state: mx.array, other: mx.array) -> float:
    wide = [array.astype(mx.float32) for array in (state, other)]
    off = mx.abs(wide[0] - wide[1]).max() / mx.maximum(mx.abs(wide[1]).max(), 1e-30)
    return float(off) if bool(mx.isfinite(off)) else float("inf")


def _tolerance(state: mx.array) -> float:
    return TOLERANCE if state.dtype == mx.float32 else TOLERANCE_16_BITS
