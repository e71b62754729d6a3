"""Who holds which slot: rows that decode, rows whose prompts are being fed, those to come and go.

Decoding rows hold the first slots, rows being fed the ones after them, in the order in which they
will join. Everything here is described behind the step in flight and never waits for it: that one
has rows of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import fill_holes
from mlx_spec.cache.slot_sizes import SlotSize
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.decoding.feeding import Feeder
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.decoding.opening import MOST_TOKENS, may_open
from mlx_spec.decoding.pass_listeners import StatesListener
from mlx_spec.decoding.prompt_logprobs import PromptScorer
from mlx_spec.decoding.prompt_meter import TargetPromptMeter
from mlx_spec.model.pace import Chunk
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence

# Room beyond a row's known tokens that the next steps may write to before it must grow.
MARGIN = 2


class Members:
    """The members of a batch and their slots.

    Args:
        runner, drafter, state, meter: the decoder's own.
        batching: rows, and how many prompt tokens are fed at once.
        clock: seconds.

    Attributes:
        feeder: reads the prompts of those that do not decode yet.
        held: tokens in the slots of rows that have ended: an end among accepted guesses leaves some
            that are nobody's.
    """

    def __init__(
        self,
        runner: ModelRunner,
        drafter: Drafter,
        state: BatchState,
        meter: StepMeter,
        batching: BatchingConfig,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        listeners = [StatesListener(drafter.fed), PromptScorer()]
        prompts = TargetPromptMeter(meter)
        self.feeder = Feeder(runner, batching, meter=prompts, clock=clock, listeners=listeners)
        self.leaving: set[Sequence] = set()
        self.waiting: list[Sequence] = []
        self.size: SlotSize | None = None
        self.held: dict[Sequence, int] = {}
        self._saving: set[Sequence] = set()
        self._saved: dict[Sequence, RowState] = {}
        self._runner, self._drafter, self._state = runner, drafter, state
        self._keeps = batching.prefix_cache_bytes > 0

    @property
    def staying(self) -> int:
        """Rows held by sequences that do not leave."""
        return len(self._state) + len(self.feeder.sequences) - len(self.leaving)

    @property
    def cached(self) -> list[int]:
        """Tokens that each row's slot holds, in slot order."""
        decoding = self._state.sequences
        held = [0 if self._state.opening else sequence.length - 1 for sequence in decoding]
        return held + self.feeder.cached

    def leave(self, sequence: Sequence, *, save: bool = False) -> None:
        """Let a sequence go at the next boundary; ``save`` keeps its K/V for its return."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        if sequence in self._state.sequences or sequence in self.feeder.sequences:
            self.leaving.add(sequence)
            if save and sequence in self._state.sequences:
                self._saving.add(sequence)

    def forget(self, sequence: Sequence) -> bool:
        """Drop K/V saved for a sequence, if any: if it returns they are computed again."""
        known = sequence in self._saving or sequence in self._saved
        self._saving.discard(sequence)
        self._saved.pop(sequence, None)
        return known

    def saved(self, sequence: Sequence) -> RowState:
        """What is kept of a sequence that may return."""
        return self._saved[sequence]

    @property
    def kept_bytes(self) -> int:
        """Bytes of K/V saved for sequences that may return."""
        return sum(state.nbytes for state in self._saved.values())

    @property
    def saved_bytes(self) -> int:
        """The same after the next boundary: those about to be saved are in it."""
        nbytes = self._runner.cost.nbytes
        return self.kept_bytes + sum(nbytes(sequence.length - 1) for sequence in self._saving)

    @property
    def prefix_bytes(self) -> int:
        """Bytes of repeated beginnings kept."""
        return self.feeder.prefix_bytes + self._drafter.prefix_bytes

    def change(self, flying: int = 0) -> None:
        """Let rows leave and newcomers take slots.

        Args:
            flying: tokens that a row may gain by the step in flight, which the host does not know.
        """
        self.feeder.publish()
        if self.leaving:
            self._release()
        if self.size is not None:
            members = [*self._state.sequences, *self.feeder.sequences, *self.waiting]
            needed = max((sequence.length for sequence in members), default=0) + flying + MARGIN
            for runner in (self._runner, *self._drafter.runners):
                runner.pool.fit(self.size, needed)
            self.size = None
        if self.waiting:
            self._admit()

    def fill(self) -> list[Chunk]:
        """Feed prompts; rows that are fed join the decoding ones.

        Returns:
            Where rows decode, the chunk that is to be launched before their next step, as much as
            they may wait for; where none do, what is read is computed here, or by their first step.
        """
        fed = self.feeder.sequences
        if not fed or self._state.opening:
            return []
        if not self._state.sequences and self._open():
            return []
        slots = {sequence: slot for slot, sequence in enumerate(fed, start=len(self._state))}
        chunk = None
        if self._state.sequences:
            chunk = self.feeder.build(slots)
        else:
            self.feeder.compute(slots)
        # Rows that wait for nobody begin together: else the first would decode in a small batch,
        # while the others are read in small chunks.
        done = list(self.feeder.take(in_order=True, groups=not self._state.sequences))
        if done:
            self._join(done)
        return [] if chunk is None else [chunk]

    def _open(self) -> bool:
        """Have all rows begin unread, where they may."""
        may = may_open(self._runner, self._drafter) and self.feeder.leave_unread(MOST_TOKENS)
        if may:
            self._join(list(self.feeder.take(in_order=True)), opening=True)
        return may

    def _release(self) -> None:
        """Move rows together, copying as few as possible."""
        decoding = self._state.sequences
        if self._saving or self._keeps:
            self._drafter.settle()
        for slot, sequence in enumerate([] if self._state.opening else decoding):
            if sequence in self._saving:
                self._saved[sequence] = self._runner.pool.save(slot, 0, sequence.length - 1)
            elif sequence in self.leaving and sequence.finish_reason and not sequence.error:
                # A chat goes on where it ended.
                self.feeder.keep(slot, sequence, sequence.length - 1)
                self.feeder.keep_end(slot, sequence, self.held.get(sequence))
        self._saving.clear()
        self.held.clear()
        rows = len(decoding)
        order = fill_holes(rows, [i for i, s in enumerate(decoding) if s in self.leaving])
        fed = [rows + i for i, s in enumerate(self.feeder.sequences) if s not in self.leaving]
        self._runner.pool.keep(order + fed)
        self._drafter.keep(order)
        self._state.rearrange(order, [])
        self.feeder.drop(self.leaving)
        self.leaving.clear()

    def _admit(self) -> None:
        """Give newcomers slots, in the order in which they will join."""
        back = {s: s.length - 1 for s in self.waiting if s in self._saved}
        pool = self._runner.pool
        # What may want memory comes first: without it nobody has left the queue.
        pool.reserve(max(sequence.length for sequence in self.waiting) + MARGIN)
        first = pool.acquire(len(self.waiting))
        newcomers = self.feeder.add(self.waiting, back)
        self.waiting.clear()
        for slot, sequence in enumerate(newcomers, start=first):
            if sequence in self._saved:
                pool.load(slot, 0, [self._saved.pop(sequence)])
        decoding, order = len(self._state), self.feeder.pass_longer(len(newcomers))
        pool.keep([*range(decoding), *(decoding + place for place in order)])

    def _join(self, sequences: list[Sequence], *, opening: bool = False) -> None:
        """Rows whose prompts are in the cache begin to decode; or all rows with nothing there."""
        for sequence in sequences:
            sequence.start()
        self._state.rearrange(range(len(self._state)), sequences, opening=opening)
        longest = max(sequence.length for sequence in self._state.sequences) + MARGIN
        self._state.reserve(longest)
        self._drafter.join(sequences, longest)
