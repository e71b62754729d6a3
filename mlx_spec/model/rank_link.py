"""``RankLink``: values that processes of one program give each other, over MLX's own links.

What is shared travels as a sum of bytes to which the others add nothing. Everybody must ask for the
same in the same order, with nothing else on the way; an answer that does not come is waited for.
"""

from __future__ import annotations

import pickle
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from mlx_spec.errors import RankError

T = TypeVar("T")

# Bytes of what is always sent, and of those the length of the whole; what is longer goes behind.
HEAD, LENGTH = 1024, 4


class RankLink:
    """The links of one process to all others.

    Args:
        group: MLX's.

    Attributes:
        rank, size: the number of this process, and how many there are.
        lost: why nobody answers any more, in words.
    """

    def __init__(self, group: Any) -> None:
        self.rank, self.size = int(group.rank()), int(group.size())
        self.lost = ""
        self._group = group

    def share(self, value: T) -> T:
        """Rank 0's value, on all ranks.

        Raises:
            RankError: nobody answers.
        """
        body = pickle.dumps(value) if self.rank == 0 else b""
        frame = len(body).to_bytes(LENGTH, "little") + body
        head = self._sum(frame[:HEAD].ljust(HEAD, b"\0"))
        missing = LENGTH + int.from_bytes(head[:LENGTH], "little") - HEAD
        if missing > 0:
            head += self._sum(frame[HEAD:] if self.rank == 0 else bytes(missing))
        if self.rank == 0:
            return value
        shared: T = self._read(head[LENGTH : HEAD + missing])
        return shared

    def gather(self, what: str, value: T) -> list[T]:
        """The values of all ranks, in their order; ``what`` they are must be the same on all.

        Raises:
            RankError: another rank gives something else, or does not answer.
        """
        body = pickle.dumps((what, value))
        frame = len(body).to_bytes(LENGTH, "little") + body
        assert len(frame) <= HEAD, what
        mine = mx.array(np.frombuffer(frame.ljust(HEAD, b"\0"), np.uint8))
        gathered = mx.distributed.all_gather(mine[None], group=self._group)
        values = []
        for rank, row in enumerate(self._computed(gathered)):
            data = row.tobytes()
            length = int.from_bytes(data[:LENGTH], "little")
            said, other = self._read(data[LENGTH : LENGTH + length])
            if said != what:
                raise RankError(
                    f"[RankLink.gather] rank {self.rank} of {self.size} gives its {what}, rank "
                    f"{rank} its {said}: {other}"
                )
            values.append(other)
        return values

    def chosen(self, tokens: mx.array) -> mx.array:
        """Rank 0's integers, lazily."""
        # Others' count for nothing, and yet are computed first: ranks exchange the numbers of a
        # pass in one and the same order only if all of them have described the same.
        return mx.distributed.all_sum(tokens * (self.rank == 0), group=self._group)

    def _read(self, data: bytes) -> Any:
        """A value; where a rank has gone in its middle MLX may give anything."""
        try:
            return pickle.loads(data)
        except Exception as error:
            raise RankError(f"[RankLink] {self.lost or 'nobody answers'}: {error!r}") from error

    def _sum(self, data: bytes) -> bytes:
        array = mx.array(np.frombuffer(data, np.uint8))
        return self._computed(mx.distributed.all_sum(array, group=self._group)).tobytes()

    def _computed(self, array: mx.array) -> np.ndarray[Any, Any]:
        if self.lost:
            raise RankError(f"[RankLink] {self.lost}")
        try:
            return np.asarray(array)
        except RuntimeError as error:
            raise RankError(f"[RankLink] {self.lost or 'nobody answers'}: {error}") from error
