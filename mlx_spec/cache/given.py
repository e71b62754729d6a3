"""``GivenRow``: keys and values that come from elsewhere, as the prefix cache takes those of a row.

Full attention only: what other kinds keep of a text is their own affair (``RowState``).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import LayerCache, RowState
from mlx_spec.cache.pool import schedule

KeysAndValues = tuple[mx.array, mx.array]
"""Of one layer, [1, kv_heads, tokens, head_dim] each."""


class GivenRow:
    """A text's keys and values, layer by layer, where a row of a pool would have them.

    Args:
        layers: of the model's own layers.
        more: layers that the pool has behind them (a head's), of which nothing is given.
    """

    sliceable = True

    def __init__(self, layers: Seq[KeysAndValues], more: int = 0) -> None:
        self._layers, self._more = layers, more

    @property
    def cost(self) -> RowCost:
        """Linear in tokens."""
        tokens = self._layers[0][0].shape[2]
        return RowCost(per_token=sum(a.nbytes for pair in self._layers for a in pair) // tokens)

    def save_blocks(self, slot: int, begin: int, end: int, size: int) -> list[RowState]:
        """Copies of its tokens ``begin .. end - 1``, ``size`` tokens each; there is one slot."""
        blocks = [self._block(start, start + size) for start in range(begin, end, size)]
        schedule([array for block in blocks for array in block.flat])
        return blocks

    def _block(self, begin: int, end: int) -> RowState:
        parts = [
            RowState(tuple(mx.contiguous(array[:, :, begin:end]) for array in pair))
            for pair in self._layers
        ]
        return RowState(parts=(*parts, *[RowState()] * self._more))


def takes_given(layers: Seq[LayerCache]) -> bool:
    """Whether what these keep are plain keys and values of all tokens."""
    return all(type(layer) is DenseKVCache for layer in layers)


def given_by(state: RowState, count: int, tokens: int) -> list[KeysAndValues]:
    """The same of what was saved of a row: of its first layers, and of its first tokens."""
    return [
        (part.arrays[0][:, :, :tokens], part.arrays[1][:, :, :tokens])
        for part in state.parts[:count]
    ]
