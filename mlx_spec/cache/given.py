"""``GivenRow``: what was saved elsewhere of a text, as the prefix cache takes it of a row."""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import KVCachePool


class GivenRow:
    """A text where a row of a pool would have it.

    Args:
        state: what was saved of it, of the pool's first layers; of those behind (a head's) nothing
            is given.
        tokens: of the text.
        pool: for rows of which it is.
    """

    def __init__(self, state: RowState, tokens: int, pool: KVCachePool) -> None:
        missing = len(pool.layers) - len(state.parts)
        self._state = RowState(parts=(*state.parts, *[RowState()] * missing))
        self._tokens, self._pool = tokens, pool

    @property
    def sliceable(self) -> bool:
        """As of the pool."""
        return self._pool.sliceable

    @property
    def cost(self) -> RowCost:
        """Of all of it, or linear in tokens where it can be cut."""
        nbytes = self._state.nbytes
        return RowCost(per_token=nbytes // self._tokens) if self.sliceable else RowCost(nbytes)

    def save_blocks(self, slot: int, begin: int, end: int, size: int) -> list[RowState]:
        """Copies of its tokens ``begin .. end - 1``, ``size`` tokens each; there is one slot."""
        if not self.sliceable:
            assert (begin, end) == (0, self._tokens)
            return [self._state]
        return [_cut(self._state, start, start + size) for start in range(begin, end, size)]

    def on_the_way(self, state: RowState) -> RowState:
        """As of the pool."""
        return self._pool.on_the_way(state)


def _cut(state: RowState, begin: int, end: int) -> RowState:
    """A stretch of what keeps an entry for each token."""
    return RowState(
        tuple(mx.contiguous(array[:, :, begin:end]) for array in state.arrays),
        tuple(_cut(part, begin, end) for part in state.parts),
        state.note,
    )
