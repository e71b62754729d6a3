"""The last keys and values of each row, for layers that attend within a sliding window.

``RingKVCache`` stands for mlx-lm's ``RotatingKVCache(max_size, keep)``. It takes as much memory as
its window, however long the text. An entry's place follows from its position alone, so rows wrap
around each at its own time, and rolling back is still no operation at all: a few entries more than
the window (``SLACK``) are there to be written over by guesses that are not kept::

    window 4, slack 2                            entry   0  1  2  3  4  5
    a row of 9 tokens                         position   6  7  8  3  4  5
    a pass over 9, 10, 11; 9 sees 6, 7, 8              6  7  8  9 10 11   written over: 3, 4, 5
    only 9 was right; 10 comes next, sees 7, 8, 9      6  7  8  9 10  .

A wider pass (a prompt's) would write over what its own first tokens see. It reads the old entries
and, behind them, its new ones, and the ring afterwards is gathered from both by each row's own end.

While no row has come to the end of its ring, entries lie at their positions, and everything is read
and masked as in a dense cache.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.ring_places import NOWHERE, SLACK, Ring
from mlx_spec.cache.span import Span
from mlx_spec.errors import CapacityError, UnsupportedModel


@dataclass(frozen=True)
class _Wide:
    """What a wide pass was made of: its rows' old entries, then its new ones; keys and values."""

    old: list[mx.array]
    new: list[mx.array]


class RingKVCache:
    """Keys and values of one layer, [slots, kv_heads, entries, head_dim].

    Args:
        window: as ``RotatingKVCache``'s ``max_size``.
        keep: as its ``keep``.
        slack: entries more than the window.
    """

    sliceable, folds = False, False
    kind = "windows"
    offset: mx.array | int
    span: Span

    def __init__(self, window: int, keep: int = 0, slack: int = SLACK) -> None:
        self.ring = Ring(window, keep, slack)
        self.slots = self.positions = 0
        self.span = Span(0, 0, mx.zeros(0, mx.int32), 0, 0)  # none yet
        self._ahead = 0  # tokens of the pass so far, where it comes in several calls
        self._entries = DenseKVCache()

    def __copy__(self) -> RingKVCache:
        """A cache of its own over the same arrays."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._entries = copy.copy(self._entries)
        return other

    def bind(self, span: Span) -> None:
        """The rows and positions of the next pass."""
        self.span, self.offset = span, span.offset
        self._ahead = span.width + (0 if span.opens else self._ahead)
        if self._wraps and not span.opens and self._ahead > self.ring.slack + 1:
            raise CapacityError(
                f"[RingKVCache.bind] {self._ahead} tokens of one pass in calls of their own, "
                f"{self.ring.slack + 1} can be taken back"
            )
        around = self._wraps and not self._is_wide
        self._entries.bind(span.once((self.ring, "places"), self._places) if around else span)

    @property
    def _wraps(self) -> bool:
        """Whether some row may come to the end of its ring in this pass."""
        return self.span.limit > self.ring.entries

    @property
    def _is_wide(self) -> bool:
        """Whether this pass must not be written in place."""
        return self._wraps and self.span.width > self.ring.slack

    @property
    def _wide(self) -> _Wide | None:
        """Of this pass, if it is one."""
        wide: _Wide | None = self.span.scratch.get(id(self))
        return wide

    @property
    def _behind(self) -> int:
        """Old entries that a wide pass reads, of any row."""
        return min(self.span.limit - self.span.width, self.ring.entries)

    def _places(self) -> Span:
        """The same pass, in entries. What is nobody's goes to the last one, which nobody reads."""
        span, ring = self.span, self.ring
        entries = Span(span.first, span.count, span.starts, span.width, ring.entries)
        entries.positions = ring.places(span.positions)
        if span.counts is not None:
            own = mx.arange(span.width) < span.counts[:, None]
            entries.positions = mx.where(own, entries.positions, ring.entries)
        entries.index = entries.positions[:, None, :, None]
        return entries

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        """The attention mask of this pass, over what :meth:`update_and_fetch` returns."""
        span, ring = self.span, self.ring
        window = min(window_size or ring.window, ring.window)
        if window_size and window_size > ring.window and not ring.keep:
            raise UnsupportedModel(
                f"its code asks for {window_size} tokens of a cache that keeps {ring.window}: in "
                "mlx-lm a prompt's tokens see more of them than the tokens after it"
            )
        if span.limit <= window:  # nothing is out of anybody's sight
            return self._entries.make_mask(N, return_array)
        return span.once((ring, "mask", window), lambda: self._mask(window))

    def _mask(self, window: int) -> mx.array:
        span, ring = self.span, self.ring
        if self._is_wide and self._behind:
            held = ring.held(span.starts)[:, : self._behind]
            keys = mx.concatenate([held, span.positions], axis=1)[:, None, None]
        elif self._wraps and not self._is_wide:
            keys = ring.held(span.lengths)[:, None, None]
        else:
            keys = mx.arange(span.limit, dtype=mx.int32)
        mask = ring.seen(keys, span.positions[:, None, :, None], window)
        return mask[:, :, None] if span.grouped else mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write [rows, H, N, D] at each row's place; return what attention reads."""
        if not self._is_wide:
            self._entries.write(keys, values)
            return self.keys_and_values()
        self._entries.prepare(keys, values)
        old = [buffer[self._rows] for buffer in self.arrays]
        span = self.span
        wide = span.scratch[id(self)] = _Wide(old, [keys, values])
        kept = mx.full((span.count,), span.width, mx.int32) if span.counts is None else span.counts
        self._gather(wide, kept)
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What attention reads in this pass, for layers that have no keys and values of their own.

        Made anew on each call: whoever kept it would make the next write copy everything.
        """
        wide = self._wide
        if wide is None:
            return self._entries.keys_and_values()
        if not self._behind:
            return wide.new[0], wide.new[1]
        keys, values = (
            mx.concatenate([old[:, :, : self._behind], new.astype(old.dtype)], axis=2)
            for old, new in zip(wide.old, wide.new, strict=True)
        )
        return keys, values

    @property
    def state(self) -> tuple[mx.array, mx.array]:
        """The same, as models of older versions of mlx-lm ask for it."""
        return self.keys_and_values()

    @property
    def _rows(self) -> slice:
        return slice(self.span.first, self.span.first + self.span.count)

    def _gather(self, wide: _Wide, kept: mx.array) -> None:
        """The rings with the first ``kept`` [rows] new tokens of a wide pass."""
        held = self.ring.held(self.span.starts + kept)
        held = mx.pad(held, [(0, 0), (0, 1)], constant_values=NOWHERE)  # the last one, for nobody
        held = held[:, : wide.old[0].shape[2]]
        source = held - self.span.starts[:, None]
        new = ((source >= 0) & (held < NOWHERE))[:, None, :, None]
        index = mx.clip(source, 0, self.span.width - 1)[:, None, :, None]
        made = [
            mx.where(new, mx.take_along_axis(part, index, 2).astype(old.dtype), old)
            for old, part in zip(wide.old, wide.new, strict=True)
        ]
        if self.span.count < self.slots:
            # Item assignment rebinds the handle it is called on; a snapshot may hold that one.
            buffers = [copy.copy(buffer) for buffer in self.arrays]
            for buffer, rows in zip(buffers, made, strict=True):
                buffer[self._rows] = rows
            made = buffers
        self._entries.arrays = made

    def commit(self, kept: mx.array | None) -> None:
        """Gather the rings of a wide pass again; else what is not kept is written over."""
        if kept is not None and self._wide is not None:
            self._gather(self._wide, kept)

    def resize(self, slots: int, positions: int) -> None:
        """Make room for more slots or positions, or fewer; of positions never more than a ring."""
        self._forget()
        entries = min(positions, self.ring.entries + 1)
        if (slots, entries) != (self.slots, self._entries.positions):
            self._entries.resize(slots, entries)  # a longer text alone copies nothing
        self.slots, self.positions = slots, positions

    def move(self, sources: mx.array, slots: mx.array) -> list[mx.array]:
        """Copy rows to other slots, lazily; return the copies."""
        self._forget()
        return self._entries.move(sources, slots)

    def save(self, slot: int, begin: int, end: int) -> RowState:
        """Copies of what the next token would see of ``begin .. end - 1``, in order of position.

        A stretch that ends before the row does can be had as long as nothing was written over it.
        """
        positions = self._stretch(begin, end, end)
        index = self.ring.places(mx.concatenate(positions))
        parts = [mx.take(buffer, index, axis=2) for buffer in self._of(slot, end)]
        return RowState(tuple(parts), note=end - begin)

    def _of(self, slot: int, end: int) -> list[mx.array]:
        """A row's arrays when it had ``end`` tokens: now, or before a wide pass in flight."""
        now = [buffer[slot : slot + 1] for buffer in self.arrays]
        wide, row = self._wide, slot - self.span.first
        if wide is None or not 0 <= row < self.span.count:
            return now
        before, rows = self.span.starts[row] == end, slice(row, row + 1)
        return [mx.where(before, old[rows], new) for old, new in zip(wide.old, now, strict=True)]

    def _forget(self) -> None:
        """Rows are not where they were when the last pass was bound."""
        self.span.scratch.pop(id(self), None)

    def _stretch(self, begin: int, end: int, length: int) -> list[mx.array]:
        """Positions of a stretch that a row of ``length`` tokens still needs: pinned, and last."""
        first = max(begin, self.ring.keep, length - max(1, self.ring.reach - 1))
        pinned = mx.arange(begin, max(begin, min(end, self.ring.keep)), dtype=mx.int32)
        return [pinned, mx.arange(min(first, end), end, dtype=mx.int32)]

    def load(self, slot: int, begin: int, states: Seq[RowState]) -> None:
        """Write saved stretches of a row, one behind the other, where the ring has them."""
        self._forget()
        states = [state for state in states if state.arrays]
        length = begin + sum(state.note for state in states)
        places, parts = [], []
        for state in states:
            end = begin + state.note
            begin, (pinned, last) = end, self._stretch(begin, end, length)
            if not pinned.size + last.size:
                continue
            # Of a stretch its last tokens were saved, of which a longer row needs fewer.
            columns = state.arrays[0].shape[2]
            taken = mx.concatenate(
                [mx.arange(pinned.size), mx.arange(columns - last.size, columns)]
            )
            places.append(self.ring.places(mx.concatenate([pinned, last])))
            parts.append([mx.take(array, taken, axis=2) for array in state.arrays])
        if parts:
            both = [mx.concatenate(each, axis=2) for each in map(list, zip(*parts, strict=True))]
            self._entries.prepare(*both)
            self._put(slot, mx.concatenate(places), both)

    def wipe(self, slot: int, begin: int) -> None:
        """Zero all of a row that a token at ``begin`` does not see, lazily."""
        held = self.ring.held(mx.array([begin], mx.int32))[0]
        # With the entry that nobody reads; of slots that are shorter than a ring, what there is.
        seen = mx.concatenate([self.ring.seen(held, mx.array(begin), None), mx.array([False])])
        seen = seen[: self._entries.positions, None]
        rows = [mx.where(seen, buffer[slot : slot + 1], 0) for buffer in self.arrays]
        self._put(slot, mx.arange(self._entries.positions), rows)

    def _put(self, slot: int, places: mx.array, new: Seq[mx.array]) -> None:
        """Write entries of one row, outside any pass."""
        written = [copy.copy(buffer) for buffer in self.arrays]  # a snapshot may hold the handles
        for buffer, part in zip(written, new, strict=True):
            buffer[slot : slot + 1, :, places] = part
        self.arrays = written

    @property
    def arrays(self) -> list[mx.array]:
        """Keys and values, once there are any."""
        return self._entries.arrays

    @arrays.setter
    def arrays(self, arrays: list[mx.array]) -> None:
        self._entries.arrays = arrays

    @property
    def cost(self) -> RowCost:
        """Linear in tokens up to the ring's size."""
        entry = self._entries.cost.per_token
        return RowCost(capped=((self.ring.entries + 1, entry),)) if entry else RowCost()
