"""States of rows as arrays: which a pass has, what a model reads of them, whose are taken.

Nothing here is in place: every function describes a new array, or gives back the one it got.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TypeAlias

import mlx.core as mx

from mlx_spec.cache.span import Span

# Of some rows, one array for each item of the cache; None for what no model has set yet.
States: TypeAlias = "tuple[mx.array | None, ...]"


def of_rows(states: mx.array | None, span: Span, slots: int) -> mx.array | None:
    """[rows, ...] of a pass, of what [slots, ...] hold."""
    if states is None or span.count == slots:
        return states
    return states[span.first : span.first + span.count]


def read_by(states: mx.array | None, span: Span) -> mx.array | None:
    """The same [rows, ...] as a model reads them: rows that begin hold nothing, zeros among others
    and None where all begin."""
    if states is None or span.since > 0:
        return states
    if span.uniform:
        return None if span.limit == span.width else states
    begins = span.starts == 0
    if span.counts is not None:
        begins = begins & (span.counts > 0)
    return choose(begins, mx.zeros_like(states), states)


def choose_each(rows: mx.array, states: States, others: States) -> States:
    """``states`` for those of [rows] booleans, ``others`` for the other ones."""
    pairs = zip(states, others, strict=True)
    return tuple(new if new is None else choose(rows, new, old) for new, old in pairs)


def choose(rows: mx.array, states: mx.array, others: mx.array | None) -> mx.array:
    """The same for one array [rows, ...]; NaN on one side is none on the other.

    Args:
        rows: [rows] booleans.
        states: of those that are True.
        others: of the other ones; None for zeros.
    """
    if others is None:
        others = mx.zeros_like(states)
    states, others = aligned(states, others)
    return mx.where(rows.reshape(-1, *[1] * (states.ndim - 1)), states, others)


def aligned(one: mx.array, other: mx.array) -> tuple[mx.array, mx.array]:
    """Both of one type and shape: what holds less of the last tokens gets zeros in front."""
    if one.dtype != other.dtype:
        other = other.astype(one.dtype)
    if one.shape[1:] != other.shape[1:]:
        shape = list(map(max, one.shape[1:], other.shape[1:]))
        one, other = _padded(one, shape), _padded(other, shape)
    return one, other


def _padded(states: mx.array, shape: Seq[int]) -> mx.array:
    missing = [(size - own, 0) for size, own in zip(shape, states.shape[1:], strict=True)]
    return mx.pad(states, [(0, 0), *missing])
