"""``LayerCache``: what the pool, and mlx-lm's models, ask of one layer's cache for all slots.

A kind of cache is one file that implements it, and ``layout`` says for which of mlx-lm's cache
classes it stands. The pool loops over its layers and knows nothing of what they hold; what is saved
of a row is a ``RowState`` that only the kind which saved it can read. See docs/caches.md.

What a kind changes while a pass is described (arrays that the next pass reads) must be in
``arrays``, since that is all that a step which is never launched takes back.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.span import Span


@dataclass(frozen=True, eq=False)
class RowState:
    """What was saved of one row, or of a stretch of it: copies that no later pass changes.

    Attributes:
        arrays: with buffers of their own.
        parts: of the members, where a cache is made of several (a pool's layers).
        note: what else a kind must know to load it.
    """

    arrays: tuple[mx.array, ...] = ()
    parts: tuple[RowState, ...] = ()
    note: Any = None

    @property
    def flat(self) -> list[mx.array]:
        """All arrays, its parts' too."""
        return [*self.arrays, *(array for part in self.parts for array in part.flat)]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.flat)


class LayerCache(Protocol):
    """One layer's cache, all slots: also what mlx-lm's models call a cache.

    Attributes:
        slots, positions: rows, and tokens of each, that there is room for.
        kind: what it holds, in a word for statistics; its class, where it has none.
        offset: [rows] int32, positions of the first new tokens of the bound pass; one number where
            the pass is of one row for a model that takes no more (``Span.offset``).
    """

    slots: int
    positions: int
    offset: mx.array | int

    @property
    def sliceable(self) -> bool:
        """Whether any stretch of a row can be saved, or only what ends where the row ends now."""
        ...

    @property
    def folds(self) -> bool:
        """Whether tokens go into a state, so that rolling back is more than assigning a length."""
        ...

    @property
    def cost(self) -> RowCost:
        """Bytes of a row; none before the first pass, which shows heads, sizes and types."""
        ...

    @property
    def arrays(self) -> list[mx.array]:
        """All arrays, in an order that does not change; none before the first pass."""
        ...

    @arrays.setter
    def arrays(self, arrays: list[mx.array]) -> None: ...

    def bind(self, span: Span) -> None:
        """The rows and positions of the next pass. A row that starts at 0 begins anew."""
        ...

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Write the new tokens' [rows, H, N, D]; return what attention reads of both: an array
        each, or what else mlx-lm's attention function takes."""
        ...

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        """The attention mask of the bound pass."""
        ...

    def commit(self, kept: mx.array | None) -> None:
        """Of the bound pass keep each row's first ``kept`` [rows] tokens, lazily.

        Before, and for None, ``arrays`` are what they are with all valid ones, since not every
        pass is committed.
        """
        ...

    def resize(self, slots: int, positions: int) -> None:
        """Make room for more slots or positions, or fewer; none of either drops everything."""
        ...

    def move(self, sources: mx.array, slots: mx.array) -> list[mx.array]:
        """Slot ``slots[i]`` takes over what ``sources[i]`` holds, lazily; both [n] int32.

        Returns:
            The copies on the way, which the pool schedules before a pass writes.
        """
        ...

    def save(self, slot: int, begin: int, end: int) -> RowState:
        """Copies of what a row holds of its tokens ``begin .. end - 1``, lazily."""
        ...

    def load(self, slot: int, begin: int, states: Seq[RowState]) -> None:
        """Put saved stretches, one behind the other, at positions ``begin ..``, lazily.

        Of a kind that folds and cannot be cut all but the last may be empty.
        """
        ...

    def wipe(self, slot: int, begin: int) -> None:
        """Make numbers of whatever a row's slot holds from position ``begin`` on, lazily."""
        ...
