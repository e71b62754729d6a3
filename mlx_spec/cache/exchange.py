"""What was saved of a row, as mlx-lm's own caches hold it, and back: for files that both read.

Both sides keep the same numbers in another order. A window that has come round holds, in mlx-lm, an
entry more than the next token sees, which that token writes over: here it is not saved, so anything
stands in its place::

    window 4, 7 tokens    mlx-lm   [ 3 4 5 6 ] or [ 4 5 6 3 ]       saved   [ 4 5 6 ]

What each kind of mlx-lm's caches gives and takes is a line in ``_FORMS``. States hold no number of
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_spec.cache.layer import RowState
from mlx_spec.cache.layout import kind_of
from mlx_spec.cache.quantized import Packing
from mlx_spec.cache.ring_places import Ring
from mlx_spec.errors import InvalidRequest


@dataclass(frozen=True)
class _Exchanged:
    """One kind of caches.

    Attributes:
        give: fills an empty one with what was saved of so many tokens.
        take: what it holds, as it would have been saved.
        tokens: how many it was given; None where it does not know.
    """

    give: Callable[[Any, RowState, int], None]
    take: Callable[[Any], RowState]
    tokens: Callable[[Any], int | None] = lambda own: int(own.offset)


def give(caches: Seq[Any], parts: Seq[RowState], tokens: int) -> None:
    """Fill mlx-lm's empty caches with what was saved of a row.

    Raises:
        InvalidRequest: there is no such form of one of them.
    """
    for own, part in zip(caches, parts, strict=True):
        _form(own).give(own, part, tokens)


def take(caches: Seq[Any]) -> list[RowState]:
    """What mlx-lm's caches hold, as rows of ours are saved.

    Raises:
        InvalidRequest: there is no such form of one of them, or what it holds does not do.
    """
    return [_form(own).take(own) for own in caches]


def tokens_in(caches: Seq[Any]) -> int | None:
    """Tokens that caches have read, or None where none says it.

    Raises:
        InvalidRequest: they differ in it, or there is no such form of one of them.
    """
    known = {count for own in caches if (count := _form(own).tokens(own)) is not None}
    if len(known) > 1:
        raise InvalidRequest(f"its layers have read {sorted(known)} tokens")
    return known.pop() if known else None


def window_of(own: Any) -> tuple[int, int] | None:
    """Size of a window, and how many first tokens are always in it; None of anything else."""
    if kind_of(own) == "chunk":
        return own.chunk_size, 0
    return (own.max_size, own.keep) if kind_of(own) == "window" else None


def packing_of(own: Any) -> Packing | None:
    """How numbers are packed; None of what is not."""
    return Packing(own.bits, own.group_size) if kind_of(own) == "packed" else None


def _form(own: Any) -> _Exchanged:
    form = _FORMS.get(kind_of(own))
    if form is None:
        raise InvalidRequest(f"a {type(own).__name__} cannot be kept in a file")
    return form


def _give_all(own: Any, part: RowState, tokens: int) -> None:
    own.update_and_fetch(*part.arrays)


def _take_all(own: Any) -> RowState:
    return RowState((own.keys[:, :, : own.offset], own.values[:, :, : own.offset]))


def _give_packed(own: Any, part: RowState, tokens: int) -> None:
    own.keys, own.values, own.offset = part.arrays[:3], part.arrays[3:], tokens


def _take_packed(own: Any) -> RowState:
    arrays = tuple(array[:, :, : own.offset] for array in (*own.keys, *own.values))
    return RowState(arrays, note=packing_of(own))


def _give_window(own: Any, part: RowState, tokens: int) -> None:
    arrays, size, keep = part.arrays, own.max_size, own.keep
    if tokens >= size:
        missing = mx.zeros((1, 1, size - arrays[0].shape[2], 1), arrays[0].dtype)
        arrays = tuple(
            mx.concatenate(
                [
                    array[:, :, :keep],
                    mx.broadcast_to(missing, (1, array.shape[1], missing.shape[2], array.shape[3])),
                    array[:, :, keep:],
                ],
                axis=2,
            )
            for array in arrays
        )
    own.update_and_fetch(*arrays)
    own.offset = tokens


def _take_window(own: Any) -> RowState:
    # What its state is depends on mlx-lm's version; the last number is the next entry in all.
    state = own.state
    at, count = int(state[5] if len(state) > 2 else own.meta_state[3]), own.keys.shape[2]
    keep = own.keep
    if at == count:
        index = mx.arange(count)
    elif at < own.offset:
        index = mx.concatenate([mx.arange(keep), mx.arange(at, count), mx.arange(keep, at)])
    else:
        index = mx.arange(at)
    return _last_of(own, Ring(own.max_size, keep), index)


def _give_chunk(own: Any, part: RowState, tokens: int) -> None:
    own.update_and_fetch(*part.arrays)
    own.offset, own.start_position = tokens, tokens - part.arrays[0].shape[2]


def _take_chunk(own: Any) -> RowState:
    return _last_of(own, Ring(own.chunk_size), mx.arange(own.offset - own.start_position))


def _last_of(own: Any, ring: Ring, index: mx.array) -> RowState:
    """What a ring saves of entries in order of position, the last one of the last token."""
    tokens, count = own.offset, index.size
    pinned = min(ring.keep, tokens)
    first = min(tokens, max(pinned, tokens - max(1, ring.reach - 1)))
    if count < pinned + tokens - first:
        raise InvalidRequest(
            f"of {tokens} tokens a window of {ring.window} holds {count}, fewer than are seen"
        )
    index = mx.concatenate([index[:pinned], index[count - (tokens - first) :]])
    parts = tuple(mx.take(array, index, axis=2) for array in (own.keys, own.values))
    return RowState(parts, note=tokens)


def _give_states(own: Any, part: RowState, tokens: int) -> None:
    for place, array in enumerate(part.arrays):
        own[place] = None if array.shape[1:] == (0,) else array


def _take_states(own: Any) -> RowState:
    return RowState(tuple(mx.zeros((1, 0)) if array is None else array for array in own.cache))


_FORMS: dict[str, _Exchanged] = {
    "full": _Exchanged(_give_all, _take_all),
    "packed": _Exchanged(_give_packed, _take_packed),
    "window": _Exchanged(_give_window, _take_window),
    "chunk": _Exchanged(_give_chunk, _take_chunk),
    "states": _Exchanged(_give_states, _take_states, lambda own: None),
}
