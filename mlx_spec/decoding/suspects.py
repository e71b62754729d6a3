"""``Suspects``: rows whose last logits were no numbers, and what becomes of them.

A model that overflows, or whose quantization is broken, answers NaN for some rows. Such a row ends
with an error and the others go on. But not every NaN is the row's own: attention gives what is
masked the weight 0, and 0 times NaN is NaN, so a draft token that the model cannot bear spoils what
stands before it in the same pass, and what a slot still holds from one spoils later passes. So a
row gets a second pass, without a draft and with nothing left behind its end, and only that decides.
"""

from __future__ import annotations

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.decoding.acceptance import NO_NUMBERS
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.sequence import Sequence


class Suspects:
    """The rows of one decoder that are to be tried again. True while there are any."""

    def __init__(self) -> None:
        self._rows: set[Sequence] = set()

    def __bool__(self) -> bool:
        return bool(self._rows)

    def judge(self, sequence: Sequence, count: int) -> bool:
        """Whether a pass has a result for this row: its tokens, or that it has failed.

        Args:
            sequence: the row.
            count: draft tokens accepted, or ``NO_NUMBERS``.
        """
        again = sequence in self._rows
        if count != NO_NUMBERS:
            self._rows.discard(sequence)
        elif not again:
            self._rows.add(sequence)
            return False
        else:
            self._rows.discard(sequence)
            sequence.fail(
                f"[SpeculativeDecoder] the model's logits are not numbers after {sequence.length} "
                "tokens (NaN or infinite: an overflow, or a broken quantization)"
            )
        return True

    def clear_slots(self, state: BatchState, pool: KVCachePool) -> None:
        """Before the second pass: wipe what the rows' slots hold past their ends."""
        self._rows.intersection_update(state.sequences)
        for slot, sequence in enumerate(state.sequences if self._rows else ()):
            if sequence in self._rows:
                pool.wipe(slot, sequence.length - 1)
