"""``Suspects``: rows whose last logits were no numbers, and what becomes of them.

A model that overflows, or whose quantization is broken, answers NaN for some rows. Such a row ends
with an error and the others go on. But not every NaN is the row's own: attention gives what is
masked the weight 0, and 0 times NaN is NaN, so a draft token that the model cannot bear spoils what
stands before it in the same pass, and what a slot still holds from one spoils later passes. So a
row gets a second pass, without a draft and with nothing left behind its end, and only that decides.
A state that a pass was folded into is made again from the row's tokens, and so is what a first pass
wrote that read the prompt, too (``opening``).
"""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.decoding.acceptance import NO_NUMBERS
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence

# Tokens of one pass, where a row is read again.
AGAIN = 512


class Suspects:
    """The rows of one decoder that are to be tried again. True while there are any."""

    def __init__(self) -> None:
        self._rows: set[Sequence] = set()
        self._unread: set[Sequence] = set()  # of these, whose prompt that pass read

    def __bool__(self) -> bool:
        return bool(self._rows)

    def judge(self, sequence: Sequence, count: int, *, unread: bool = False) -> bool:
        """Whether a pass has a result for this row: its tokens, or that it has failed.

        Args:
            sequence: the row.
            count: draft tokens accepted, or ``NO_NUMBERS``.
            unread: whether the pass read its prompt, too.
        """
        again = sequence in self._rows
        if count == NO_NUMBERS and sequence.doomed is not None:
            self._rows.discard(sequence)
            sequence.fail(sequence.doomed)
        elif count != NO_NUMBERS:
            self._rows.discard(sequence)
        elif not again:
            self._rows.add(sequence)
            if unread:
                self._unread.add(sequence)
            return False
        else:
            self._rows.discard(sequence)
            why = "NaN or infinite: an overflow, or a broken quantization"
            if sequence.guide is not None:
                why += "; or min_tokens, a bias or a function forbids what the structure leaves"
            sequence.fail(
                f"[SpeculativeDecoder.step] the model's logits are not numbers after "
                f"{sequence.length} tokens ({why})"
            )
        return True

    def clear_slots(self, state: BatchState, runner: ModelRunner) -> None:
        """Before the second pass: wipe what the rows' slots hold past their ends.

        What a token was folded into cannot be wiped: such rows are read again.
        """
        self._rows.intersection_update(state.sequences)
        again, self._unread = self._unread & self._rows, set()
        for slot, sequence in enumerate(state.sequences if self._rows else ()):
            seen = sequence.length - 1
            if sequence in self._rows:
                runner.pool.wipe(slot, seen)
                if seen and (sequence in again or runner.pool.folded()):
                    tokens = mx.array([sequence.known(0, seen)], mx.int32)
                    rows = Rows(tokens, mx.zeros(1, mx.int32), seen, slot, uniform=True)
                    runner.feed(rows, AGAIN, wait=True)
