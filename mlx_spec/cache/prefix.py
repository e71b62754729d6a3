"""What rows hold of repeated beginnings, kept in immutable stretches and found by their tokens.

A block is ``block_size`` tokens; its key is a hash over its own tokens and the key of the block
before it, so equal keys mean equal prefixes. Where the caches can be cut anywhere a stretch is one
block; else it is what lies between two places where a row was looked at, wherever that is, and
stands under the key of all tokens up to there. Stretches are copies: rows come and go without
touching them. Least recently used ones go first, and of one prefix the later before the earlier, so
what is left of it can still be found::

    a talk, of a model with states   [ turn 1 | turn 2 | turn 3 ]   each: keys and values of its
                                        (s1)     s2       s3        tokens, and the state at its end

Where memory is short, states in the middle go before anything else does: a stretch without its
state is still on the way to later ones. Those that several texts went on from stay.

Storing does not wait for the device. Whether what was stored are numbers is computed along with the
copies and looked at when they are first wanted: what is none goes then, with what follows it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from mlx_spec.block_keys import TextKeys
from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.stretch import SoundCheck, Stretch

# Texts that went on from a state in the middle: as many, and it is kept for others.
SHARED = 2


class RowSource(Protocol):
    """Rows of which copies can be had; ``KVCachePool`` is one."""

    @property
    def cost(self) -> RowCost:
        """Bytes of a row, or of a stretch of one."""
        ...

    @property
    def sliceable(self) -> bool:
        """Whether any stretch of a row can be saved, or only what ends where the row ends now."""
        ...

    def save_blocks(self, slot: int, begin: int, end: int, size: int) -> list[RowState]:
        """Copies of a row's tokens ``begin .. end - 1``, ``size`` tokens each, lazily."""
        ...

    def on_the_way(self, state: RowState) -> RowState:
        """What of a stretch is needed by those behind it: all but states at its own end."""
        ...


@dataclass(frozen=True)
class _Copies:
    """What is to be copied of a slot: ``count`` stretches of ``step`` tokens each."""

    source: RowSource
    slot: int
    count: int
    step: int
    uses: int


class PrefixCache:
    """What one model's rows hold of repeated beginnings.

    Args:
        block_size: tokens a block.
        limit: most bytes kept; 0 keeps nothing.

    Attributes:
        nbytes: bytes kept.
        reused: tokens that did not have to be computed again, over all time.
    """

    def __init__(self, block_size: int, limit: int) -> None:
        self.block_size = block_size
        self.limit = limit
        self.nbytes = 0
        self.reused = 0
        self._kept: OrderedDict[bytes, Stretch] = OrderedDict()
        # Of stretches that end within a block: the key before that, and how far into it they go.
        self._within: dict[bytes, Counter[int]] = {}
        self._states = 0  # stretches that have states to give up

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def match(self, text: TextKeys) -> int:
        """How many tokens of a text are kept."""
        return _end(self._known(text))

    def read(self, text: TextKeys) -> list[RowState]:
        """The longest kept beginning of a text, stretch by stretch, to load at position 0."""
        known = self._known(text)
        self._touch(known)
        self.reused += _end(known)
        if known:
            known[-1].uses += 1
        return [stretch.state for stretch in known]

    def store(
        self, text: TextKeys, source: RowSource, slot: int, *, uses: int = 0
    ) -> list[mx.array]:
        """Keep what a row holds of a text and is not kept yet, as much as ``limit`` allows.

        Whole blocks, or where rows cannot be cut anywhere all up to the text's end, if that is a
        block at least. Old ones go before new ones are copied, and each is copied once, so that
        never more than ``limit`` bytes are held.

        Args:
            text: the tokens in the row's cache.
            source, slot: where the row is.
            uses: texts that are known to go on from there.

        Returns:
            The copies, to be computed before the row is written to.
        """
        size, cost = self.block_size, source.cost
        if self.limit == 0 or text.length < size or cost == RowCost():
            return []
        if source.sliceable:
            text = text.until(text.length // size * size)
        path = self._path(text)
        self._touch(path)
        if text.length - _end(path) < size:
            return []
        if source.sliceable:
            each, step = cost.nbytes(size), size
        else:
            path = self._room(path, text.length, cost)
            step = text.length - _end(path)
            each = cost.nbytes(step)
        count = min((text.length - _end(path)) // step, (self.limit - _nbytes(path)) // each)
        if count <= 0:
            return []
        self._make_room(count * each)
        return self._copy(text, path, _Copies(source, slot, count, step, uses))

    def _copy(self, text: TextKeys, path: list[Stretch], rows: _Copies) -> list[mx.array]:
        """Add stretches behind a path; their arrays."""
        begin, step = _end(path), rows.step
        states = rows.source.save_blocks(rows.slot, begin, begin + rows.count * step, step)
        check, before = SoundCheck(states), text.at(begin)
        for place, state in enumerate(states):
            begin, end = _end(path), _end(path) + step
            stretch = Stretch(state, begin, end, text.at(end), before, check, place)
            if end % text.size:
                stretch.within = text.before(end // text.size), end % text.size
            way = rows.source.on_the_way(state)
            stretch.way = way if way.nbytes < state.nbytes else None
            stretch.uses = rows.uses
            self._add(stretch)
            path.append(stretch)
            before = stretch.key
        self._touch(path)
        return [*(array for state in states for array in state.flat), check.finite]

    def forget(self, text: TextKeys) -> None:
        """Drop what is kept of a text's beginning."""
        for stretch in self._path(text):
            self._drop(stretch)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._within.clear()
        self.nbytes = self._states = 0

    def _touch(self, path: Seq[Stretch]) -> None:
        """Note a use; of the later ones first, so that they go first."""
        for stretch in reversed(path):
            self._kept.move_to_end(stretch.key)

    def _room(self, path: list[Stretch], length: int, cost: RowCost) -> list[Stretch]:
        """Of a text's own stretches those that may stay beside one more, up to ``length``."""
        inner = iter(path[:-1])
        while path and _nbytes(path) + cost.nbytes(length - _end(path)) > self.limit:
            stretch = next(inner, None)
            if stretch is not None:
                self._lighten(stretch)
            else:
                path = path[:-1]
        return path

    def _make_room(self, nbytes: int) -> None:
        """Let states in the middle go, then what was least recently used, until so much fits."""
        for stretch in list(self._kept.values()) if self._states else ():
            if self.nbytes + nbytes <= self.limit:
                return
            self._lighten(stretch)
        while self.nbytes + nbytes > self.limit:
            self._drop(next(iter(self._kept.values())))

    def _lighten(self, stretch: Stretch) -> None:
        """Keep of a stretch in the middle only what is on the way to those behind it."""
        if stretch.way is None or not stretch.followers or stretch.uses >= SHARED:
            return
        self.nbytes += stretch.way.nbytes - stretch.nbytes
        stretch.state, stretch.nbytes = stretch.way, stretch.way.nbytes
        stretch.way, stretch.whole = None, False
        self._states -= 1

    def _ends(self, text: TextKeys) -> Iterator[Stretch]:
        """What is kept under keys of a text, by length."""
        for block in range(len(text.blocks) + 1) if self._kept else ():
            before = text.before(block)
            if block and before in self._kept:
                yield self._kept[before]
            for rest in sorted(self._within.get(before, ())):
                end = block * text.size + rest
                found = self._kept.get(text.at(end)) if end <= text.length else None
                if found is not None:
                    yield found

    def _path(self, text: TextKeys) -> list[Stretch]:
        """The stretches that lead to the farthest place that a text can go on from."""
        reached: dict[int, Stretch] = {}
        best = 0
        for stretch in self._ends(text):
            if stretch.begin == 0 or stretch.begin in reached:
                reached[stretch.end] = stretch
                best = stretch.end if stretch.whole else best
        path = []
        while best:
            path.append(reached[best])
            best = reached[best].begin
        return path[::-1]

    def _known(self, text: TextKeys) -> list[Stretch]:
        """The same, of sound ones; what is not sound is dropped, with what follows it."""
        while True:
            path = self._path(text)
            sound = next((i for i, s in enumerate(path) if not s.check[s.place]), len(path))
            if sound == len(path):
                return path
            for stretch in path[sound:]:
                self._drop(stretch)

    def _add(self, stretch: Stretch) -> None:
        if (old := self._kept.get(stretch.key)) is not None:  # behind what was given up
            stretch.followers = old.followers
            self._drop(old)
        self._kept[stretch.key] = stretch
        self.nbytes += stretch.nbytes
        self._states += stretch.way is not None
        if stretch.within is not None:
            self._within.setdefault(stretch.within[0], Counter())[stretch.within[1]] += 1
        if stretch.before in self._kept:
            self._kept[stretch.before].followers += 1

    def _drop(self, stretch: Stretch) -> None:
        del self._kept[stretch.key]
        self.nbytes -= stretch.nbytes
        self._states -= stretch.way is not None
        if stretch.within is not None:
            key, rest = stretch.within
            self._within[key] -= Counter((rest,))
            if not self._within[key]:
                del self._within[key]
        if stretch.before in self._kept:
            self._kept[stretch.before].followers -= 1


def _end(path: Seq[Stretch]) -> int:
    """How many tokens a path is."""
    return path[-1].end if path else 0


def _nbytes(path: Seq[Stretch]) -> int:
    return sum(stretch.nbytes for stretch in path)
