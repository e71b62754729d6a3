"""The keys and values of each row's present chunk, for layers that attend within chunks.

``ChunkedRing`` stands for mlx-lm's ``ChunkedKVCache``. A token sees its chunk from the beginning,
never more than ``chunk_size`` tokens, so a ring of that window holds what is needed. The model
makes its masks itself, from the numbers ``start_position`` and ``offset``, and takes what it reads
for the positions between them: entries are read in order of position, of one row a pass
(``RowByRow``)::

    entries    6 7 8 3 4 5      read 4 5 6 7 8      start_position 4, offset 8, one new token
"""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.cache.ring import RingKVCache


class ChunkedRing(RingKVCache):
    """Keys and values of one layer, of the last tokens of each row.

    Args:
        chunk_size: tokens of a chunk.
    """

    def maybe_trim_front(self) -> None:
        """Nothing to do: a ring takes no more than its window."""

    @property
    def start_position(self) -> int:
        """The position of the first key that this pass reads.

        Raises:
            TypeError: rows stand at different positions, and models want one number.
        """
        if self.span.start is None:
            raise TypeError("[ChunkedRing.start_position] one number for several rows")
        return max(0, self.span.start + 1 - self.ring.reach)

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What attention reads in this pass, in order of position from ``start_position`` on."""
        begin, span, wide = self.start_position, self.span, self._wide
        if wide is None:
            read = [buffer[self._rows] for buffer in self.arrays]
            where = self.ring.places(mx.arange(begin, span.limit, dtype=mx.int32))
            keys, values = (mx.take(part, where, axis=2) for part in read)
            return keys, values
        where = self.ring.places(mx.arange(begin, span.limit - span.width, dtype=mx.int32))
        keys, values = (
            mx.concatenate([mx.take(old, where, axis=2), new.astype(old.dtype)], axis=2)
            for old, new in zip(wide.old, wide.new, strict=True)
        )
        return keys, values
