"""``StateCache``: what a model folds all tokens of a row into, for all slots.

It stands for mlx-lm's ``ArraysCache``: n arrays a layer (a recurrence, the last inputs of a
convolution, the last tokens), read and set as ``cache[i]``. A state has no positions, so that
rolling back is not assigning a length. A pass that may be cut (``Span.tentative``) is therefore
remembered until ``commit(kept)`` says, on the device, from which state each row goes on::

    one token a call   before -> after 1 -> after 2 -> after 3   a row goes on from after[kept];
                                                                 those past their counts stay
    one call           before ------------------------> after    ``note``: from the states before,
                           `-- replay(kept) --> states           the recurrence alone once more

Rows that begin (position 0) read zeros, or None where all of a pass do: some models compute a first
token in another way. Until the next pass is bound the states before the last one are held, by
reference: the host may ask for a row as it knows it while a step in flight is past that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.row_states import States, aligned, choose, choose_each, of_rows, read_by
from mlx_spec.cache.span import Span

# From the states before a call, as the model read them, and how many of each row's tokens are kept.
Replay: TypeAlias = Callable[[list["mx.array | None"], mx.array], Seq["mx.array | None"]]


@dataclass
class _Pass:
    """What was done to some rows since a pass began.

    Attributes:
        span: of its first call.
        before: the rows' states, whoever they were of.
        read: the same as the model read them.
        after: states after each call but the last, which the cache itself holds.
        replays: how the last call can be done again for fewer tokens.
        changes: whether the model set any of them.
    """

    span: Span
    before: States
    read: States
    after: list[States] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    changes: bool = False


class StateCache:
    """States of one layer, ``size`` arrays of [slots, ...] each.

    Attributes:
        cache: the bound rows' states now, as ``cache[i]`` reads them.
        lengths: [rows] int32, a row's own tokens where a call is padded; else None.
    """

    sliceable, folds = False, True
    kind = "states"
    offset: mx.array | int
    span: Span
    left_padding = None

    def __init__(self, size: int) -> None:
        self.cache: list[mx.array | None] = [None] * size
        self.lengths: mx.array | None = None
        self.slots = self.positions = 0
        self._kept: States = (None,) * size
        self._pass: _Pass | None = None
        # Of the last pass, each part's; one list for all copies of this cache.
        self._passes: list[_Pass] = []
        self._changed = False  # whether ``cache`` holds what ``_kept`` lacks

    def bind(self, span: Span) -> None:
        """The rows of the next call; a further call of one pass goes on from the last one."""
        present = self._pass
        if present is not None and not span.opens and self._goes_on(present, span):
            present.after.append(tuple(self.cache))
        else:
            self._write()
            before = tuple(of_rows(states, span, self.slots) for states in self._kept)
            read = tuple(read_by(states, span) for states in before)
            if not span.tentative and span.counts is None:
                before = (None,) * len(before)  # nobody will ask
            if span.opens:
                self._passes.clear()
            self._pass = _Pass(span, before, read)
            self._passes.append(self._pass)
            self.cache = list(read)
        self.span, self.offset = span, span.offset
        # One token is computed as if all rows had one; what rows without any make of it is dropped.
        self.lengths = span.counts if span.width > 1 else None

    def _goes_on(self, present: _Pass, span: Span) -> bool:
        """Whether a call is one more of the rows that are bound."""
        own = present.span
        alike = (own.first, own.count) == (span.first, span.count)
        return alike and any(part is present for part in self._passes)

    def __getitem__(self, place: int) -> mx.array | None:
        return self.cache[place]

    def __setitem__(self, place: int, states: mx.array) -> None:
        span, done = self.span, self._pass
        assert done is not None
        if span.counts is not None:
            stay = done.after[-1] if done.after else done.before
            states = choose(span.counts > 0, states, stay[place])
        new = list(self.cache)  # a copy of this cache may hold the list
        new[place] = states
        self.cache, self._changed, done.changes = new, True, True

    def advance(self, N: int) -> None:  # noqa: N803 (mlx-lm's name)
        """Nothing: ``lengths`` are those of a whole call."""

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | None:
        """[rows, N] booleans, which tokens are a row's own; None where all are."""
        if self.lengths is None:
            return None
        own: mx.array = mx.arange(N) < self.lengths[:, None]
        return own

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """There are none."""
        raise TypeError("[StateCache.update_and_fetch] a state holds no keys and values")

    @property
    def noting(self) -> bool:
        """Whether the bound call may be cut and has several tokens: then it must be noted."""
        return self.span.tentative and self.span.width > 1

    def note(self, replay: Replay) -> None:
        """How the states of the bound call come about again, of fewer tokens.

        Args:
            replay: called, if at all, by ``commit``; from all states before the call and [rows]
                tokens kept to all states after these, lazily. Several (a layer's modules, each of
                which has states of its own) are called one after the other.
        """
        assert self._pass is not None
        assert self.noting
        self._pass.replays.append(replay)

    def commit(self, kept: mx.array | None) -> None:
        """Let each row go on from the states after its first ``kept`` tokens.

        What a row holds of whose own tokens none is kept is garbage: it is read again.

        Raises:
            RuntimeError: several tokens in one call that nothing was noted of.
        """
        done = self._pass
        if kept is None or done is None or not done.changes:
            return
        assert done.span.tentative
        if done.after or done.span.width == 1:
            states, *after = (*done.after, tuple(self.cache))
            for token, later in enumerate(after, start=1):
                states = choose_each(kept > token, later, states)
        else:
            if not done.replays:
                raise RuntimeError(
                    f"[StateCache.commit] {done.span.width} tokens were read in one call, which "
                    "cannot be taken back one by one"
                )
            replayed = list(done.read)
            for replay in done.replays:
                replayed = list(replay(replayed, kept))
            states = tuple(replayed)
            if done.span.counts is not None:
                states = choose_each(done.span.counts > 0, states, done.before)
        done.after, done.replays = [], []
        self.cache, self._changed = list(states), True

    def _write(self) -> None:
        """Put what the bound rows hold now into their slots."""
        if self._changed and self._pass is not None:
            span = self._pass.span
            rows = slice(span.first, span.first + span.count)
            kept = list(self._kept)
            for place, new in enumerate(self.cache):
                if new is not None:
                    whole = span.count == self.slots
                    kept[place] = new if whole else self._put(kept[place], rows, new)
            self._kept = tuple(kept)
        self._changed = False

    def _put(self, states: mx.array | None, slots: Any, new: mx.array) -> mx.array:
        """All slots' states with new ones in some of them."""
        if states is None:
            states = mx.zeros((self.slots, *new.shape[1:]), new.dtype)
        states, new = aligned(states, new)
        written = copy.copy(states)  # a snapshot may hold the handle
        if new.size:
            written[slots] = new
        return written

    def resize(self, slots: int, positions: int) -> None:
        """Make room for more slots, or fewer; a state is as large at any position."""
        if not slots or not positions:
            self.arrays = []
            self._forget()
        elif slots != self.slots:
            room = (0, max(0, slots - self.slots))
            self.arrays = [
                mx.contiguous(mx.pad(states[:slots], [room] + [(0, 0)] * (states.ndim - 1)))
                for states in self.arrays
            ]
            self._forget()
        self.slots, self.positions = slots, positions

    def move(self, sources: mx.array, slots: mx.array) -> list[mx.array]:
        """Copy rows to other slots, lazily; return the copies."""
        rows = [states[sources] for states in self.arrays]
        self.arrays = [
            self._put(states, slots, new) for states, new in zip(self.arrays, rows, strict=True)
        ]
        self._forget()
        return rows

    def save(self, slot: int, begin: int, end: int) -> RowState:
        """Copies [1, ...] of a row's states after ``end`` tokens: now, or before the last pass."""
        where = mx.array([slot])
        now = [states[where] for states in self.arrays]
        for part in self._passes if now else ():
            row = slot - part.span.first
            if 0 <= row < part.span.count:
                asked = part.span.starts[row : row + 1] == end
                before = [None if old is None else old[row : row + 1] for old in part.before]
                now = [
                    new if old is None else choose(asked, old, new)
                    for old, new in zip(before, now, strict=True)
                ]
        return RowState(tuple(now))

    def load(self, slot: int, begin: int, states: Seq[RowState]) -> None:
        """Take over what was saved last of a row, lazily."""
        saved = [state.arrays for state in states if state.arrays]
        if saved:
            present: Seq[mx.array | None] = self.arrays or [None] * len(saved[-1])
            row = slice(slot, slot + 1)
            self.arrays = [
                self._put(old, row, new) for old, new in zip(present, saved[-1], strict=True)
            ]
            self._forget()

    def _forget(self) -> None:
        """Rows are where they were not when the last pass was bound."""
        self._pass = None
        self._passes.clear()

    def wipe(self, slot: int, begin: int) -> None:
        """Nothing lies behind a row's end."""

    @property
    def arrays(self) -> list[mx.array]:
        """All states; once there are any, an empty array for each that is not known."""
        self._write()
        if all(states is None for states in self._kept):
            return []
        return [mx.zeros((self.slots, 0)) if states is None else states for states in self._kept]

    @arrays.setter
    def arrays(self, arrays: Seq[mx.array]) -> None:
        known = [None if states.shape[1:] == (0,) else states for states in arrays]
        self._kept = tuple(known) if known else (None,) * len(self._kept)
        self._changed = False

    @property
    def cost(self) -> RowCost:
        """The same for any number of tokens."""
        return RowCost(fixed=self.nbytes // max(1, self.slots))

    @property
    def nbytes(self) -> int:
        """Bytes of all slots, of what is not written yet too. Other threads ask: nothing is
        described, which would be on a stream of theirs."""
        pairs = zip(self._kept, tuple(self.cache), strict=True)
        return sum(
            old.nbytes
            if old is not None
            else new.nbytes // max(1, new.shape[0]) * self.slots
            if new is not None
            else 0
            for old, new in pairs
        )
