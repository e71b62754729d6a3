"""``Feeder``: reads texts into a model's slots, piece by piece: the target's or a draft's.

A text is cut at multiples of a piece size that is fixed once the model's pace is known, whatever
else is fed, so that its K/V do not depend on traffic (``chunk_size``). Neighbours that stand at the
same place share a pass: packed where the model can, else such as are about as long. What several
texts begin with is computed once: the first one's blocks go to the prefix cache, where the others
look just before they are fed. Rows are read in the order in which they came, but that short ones
pass much longer ones (``reading_queue``, ``reading_order``).

The target must have read a row but for its pending token before the row decodes; a draft may lag by
what rides in its first pass. That number is the only difference::

    position    0      C      2C     3C          known - ride       known
                |------|------|------|---                 |----------|
                 read: ``seen``      ^ next piece: [seen, 3C)         pending token
    done when ``known - seen <= ride`` (1 for the target)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Seq

import mlx.core as mx

from mlx_spec.cache.pool import schedule
from mlx_spec.cache.prefix import RowSource
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.chunk_size import DRAFT_SHARE, ChunkSize
from mlx_spec.decoding.cuts import Cuts
from mlx_spec.decoding.fed_rows import FedPass, FedRow
from mlx_spec.decoding.pass_group import PassGroup
from mlx_spec.decoding.pass_listeners import PassListener, PassListeners, PromptPass
from mlx_spec.decoding.prompt_meter import PromptMeter
from mlx_spec.decoding.prompt_share import SharedPrompts
from mlx_spec.decoding.reading_queue import ReadingQueue
from mlx_spec.decoding.shared_prefixes import SharedPrefixes
from mlx_spec.model.pace import Chunk
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence

# Seconds of reading prompts after which cancelled requests, newcomers and closing have their turn.
TURN = 0.5

Slots = Mapping[Sequence, int]


class Feeder:
    """Reads the texts of rows that a model is to catch up with.

    Args:
        runner: the model with its slots.
        batching: how many tokens are read at once, and what is kept of repeated beginnings.
        ride: known tokens that a row may lack when it is done.
        meter: hears what was read.
        clock: seconds.
        listeners: hear of its passes.

    Attributes:
        size: how much is read at once, and where texts are cut.
        stopping: whether all rows are about to be cancelled.
    """

    def __init__(
        self,
        runner: ModelRunner,
        batching: BatchingConfig,
        *,
        ride: int = 1,
        meter: PromptMeter | None = None,
        clock: Callable[[], float] = time.perf_counter,
        listeners: Seq[PassListener] = (),
    ) -> None:
        self.stopping: Callable[[], bool] = lambda: False
        self._listeners = PassListeners(listeners)
        self.size = ChunkSize(runner.pace, batching, 1.0 if ride == 1 else DRAFT_SHARE)
        # Guesses may be computed in any way.
        self._cuts = Cuts(self.size, branches=runner.branches and ride == 1)
        self._runner, self._ride = runner, ride
        self._meter = meter or PromptMeter()
        self._clock = runner.ranks.clock(clock)
        self._shared = SharedPrefixes(runner.pool, batching, self.size, begun=ride > 1)
        self._prompts = SharedPrompts(runner.pool, begun=ride > 1)
        self._queue = ReadingQueue()
        self._flying = 0

    @property
    def sequences(self) -> list[Sequence]:
        """Rows that are being read, in the order in which they will be done."""
        return self._queue.sequences

    @property
    def cached(self) -> list[int]:
        """Tokens that each of their slots holds."""
        return [row.seen for row in self._queue]

    @property
    def progress(self) -> tuple[int, int]:
        """Tokens in the cache, and all tokens, of the texts read since nobody's was."""
        built, asked = self._queue.progress
        return max(0, built - self._runner.unread), asked

    @property
    def prefix_bytes(self) -> int:
        """Bytes of repeated beginnings kept."""
        return self._shared.nbytes + self._prompts.nbytes(self._queue.sequences)

    def add(
        self, sequences: Seq[Sequence], seen: Mapping[Sequence, int] | None = None
    ) -> list[Sequence]:
        """Take rows in.

        Args:
            sequences: the rows.
            seen: tokens from the first on that the slots of some of them hold already.

        Returns:
            The same in the order in which they are read: those that were, then by length, and
            behind them those that begin as an earlier one does and can take that over.
        """
        seen = seen or {}
        new = self._shared.order(s for s in sequences if s not in seen)
        order = [*(s for s in sequences if s in seen), *new]
        self._queue.add(order, seen)
        for sequence in order:
            if not seen.get(sequence):
                self._listeners.begin(sequence)
        return order

    def leave_unread(self, most: int) -> bool:
        """Let all rows be done with nothing read of them, for a first step that does; whether they
        may: ``most`` tokens in all, and nobody has or wants anything of theirs."""
        rows = list(self._queue)
        short = sum(row.sequence.length for row in rows) <= most and not self._runner.unread
        if not (short and all(map(self._untouched, rows))):
            return False
        for row in rows:
            row.done = True
            self._meter.finished(row.sequence)
        return True

    def _untouched(self, row: FedRow) -> bool:
        """Whether nothing of a row was read, and nobody wants it read apart."""
        sequence = row.sequence
        own = row.seen or row.done or sequence.tokens or sequence.share is not None
        return not (own or self._listeners.wants(sequence) or self._shared.keeps(sequence))

    def pass_longer(self, newcomers: int) -> list[int]:
        """Let the rows that came last pass much longer ones; the rows' old places, in new order."""
        return self._queue.pass_longer(newcomers)

    def drop(self, sequences: Collection[Sequence]) -> None:
        """Forget rows: they leave."""
        self._queue.drop(sequences)
        self._prompts.drop(sequences)
        self._listeners.drop(sequences)
        self._forget()

    def seen(self, sequence: Sequence) -> int:
        """Tokens from the first on that the slot of a row being read holds."""
        return self._queue[sequence].seen

    def take(self, *, in_order: bool, groups: bool = False) -> dict[Sequence, int]:
        """Hand over the rows that are done, with what was seen of each.

        Args:
            in_order: only those that no row stands before which is not done.
            groups: and only whole groups.
        """
        done = self._queue.take(in_order=in_order, groups=groups)
        self._forget()
        return done

    def keep(self, slot: int, sequence: Sequence, seen: int) -> None:
        """Copy what a row that decodes begins with, ``seen`` tokens, into the prefix cache."""
        self._shared.keep(sequence, slot, min(seen, self._cuts.read(sequence)))

    def keep_end(self, slot: int, sequence: Sequence, held: int | None) -> None:
        """The same of a row that has ended and cannot be cut: all ``held`` tokens of it."""
        alike = self._cuts.read(sequence) == sequence.length - 1  # what was said is as if read
        if held is not None and alike and held <= sequence.length:
            self._shared.keep_end(sequence, slot, held)

    def remember(self, sequence: Sequence, source: RowSource) -> int:
        """Put what somebody else has read of a text into the prefix cache; how many tokens."""
        return self._shared.remember(sequence, source)

    def publish(self) -> None:
        """At a boundary, first of all: keep what rows begin with that were read since."""
        self._shared.publish()
        self._forget()

    def _forget(self) -> None:
        """While nothing is read nobody waits for what was published."""
        if not self._queue:
            self._shared.settle()

    def build(self, slots: Slots, flying: int = 0, *, alone: bool = False) -> Chunk | None:
        """Describe passes over as many tokens as rows that decode may wait for.

        Nothing is computed: whoever steps those rows launches the chunk.

        Args:
            slots: where the rows are.
            flying: tokens that a row being read may gain from a step in flight.
            alone: nobody waits but the rows that are read.
        """
        self._flying = flying
        budget = self.size.between_steps(alone=alone)
        built = begun = self._runner.unread  # of a pass that was begun while nothing decoded
        while not begun and (part := self._next(slots, budget, budget - built)):
            rows = self._read(part, slots)
            self._note(part, rows, slots, self._runner.forward(rows))
            built += part.tokens
            if self._runner.ranks.kind == "pipeline":
                break  # what is received for one pass must not be taken for another
        self._finish(slots)
        self._shared.settle()
        if not built:
            schedule(self._copies())
            return None
        more = [*self._listeners.described, *self._copies()]
        return self._runner.chunk(built, self._meter.seconds, self._listeners.launched(), more)

    def compute(self, slots: Slots) -> None:
        """Read as much as is read fastest, while nothing decodes, for at most a turn of all others.

        A pass is computed in pieces; after ``TURN`` seconds this returns, and goes on next time.
        """
        started = self._clock()
        budget, built, self._flying = self.size.at_once, 0, 0
        while self._runner.proceed(started + TURN - self._clock()):
            self._listeners.settle()
            self._finish(slots)
            schedule(self._copies())
            self.publish()
            self._shared.settle()
            part = self._next(slots, budget, budget - built)
            if part is None:
                break
            rows = self._read(part, slots)
            self._note(part, rows, slots, self._runner.begin(rows))
            built += part.tokens
        self._meter.seconds(self._clock() - started)

    def _copies(self) -> list[mx.array]:
        """Of prompts that were read, to be computed before their slots are written to."""
        return [*self._prompts.take_copies(), *self._shared.take_copies()]

    def _next(self, slots: Slots, budget: int, left: int) -> FedPass | None:
        """The first row to be read, and neighbours of it that stand at the same place.

        None where there is none, or one takes more than the tokens that are left.
        """
        group = PassGroup(left, pads=self._runner.pads, packs=self._packs)
        for row in self._queue:
            slot = slots[row.sequence]
            if group.apart(slot) or not self._wants(row, slot):
                if group:
                    break
                continue
            row.last = self._last(row)
            end = min(row.last, self._cuts.end(row.sequence, row.seen, budget))
            decoded = self._cuts.decoded(row.sequence, row.seen)
            if not group.take(row, slot, end, decoded=decoded):
                break
        return group.made()

    def _packs(self) -> bool:
        """Whether a pass leaves no holes where some rows go further than others; not where one
        token is computed in another way than several."""
        return not self._runner.branches and self._runner.packs

    def _last(self, row: FedRow) -> int:
        """Where what is computed alike ends, or where the row is to be copied."""
        ends = (self._prompts.end(row.sequence), self._shared.place(row.sequence))
        last = self._cuts.last(row.sequence, row.seen)
        return min([last, *(end for end in ends if end is not None and end > row.seen)])

    def _wants(self, row: FedRow, slot: int) -> bool:
        """Whether a row is to be fed now, once it took over what the prefix cache has of it."""
        if row.done or self._ready(row) or self._shared.must_be_kept(row.sequence):
            return False
        if self._listeners.wants(row.sequence):
            return True
        if row.seen == 0:
            taken = self._prompts.take_over(row.sequence, slot)
            if taken is None:
                return False
            self._taken(row, taken)
        self._taken(row, self._shared.take_over(row.sequence, slot, row.seen))
        return not (self._ready(row) or self._waits(row))

    def _taken(self, row: FedRow, seen: int) -> None:
        """A row's slot holds so many tokens that others have read."""
        if seen > row.seen:
            row.seen = seen
            self._meter.reused(row.sequence, seen)

    def _ready(self, row: FedRow) -> bool:
        return row.sequence.length + self._flying - row.seen <= self._ride

    def _waits(self, row: FedRow) -> bool:
        """Whether an earlier row is about to give away what comes next of this one."""
        return self._shared.waits(row.sequence, row.seen, self._queue.before(row))

    def _read(self, part: FedPass, slots: Slots) -> Rows:
        """What a pass reads."""
        width = self._cuts.width(part.end - part.begin, decoded=part.decoded)
        return part.read(slots[part.rows[0].sequence], width, self._runner.vocabulary)

    def _note(self, part: FedPass, rows: Rows, slots: Slots, logits: mx.array) -> None:
        """A pass is built; what a model raises before leaves its rows where they were."""
        if rows.packing is not None:
            logits = rows.packing.spread(logits[:, 0])  # lazily: nearly nobody reads them
        ends = {row.sequence: part.end_of(row) for row in part.rows}
        self._listeners.heard(PromptPass(ends, part.begin, rows, logits, self._runner.hidden))
        for row in part.rows:
            row.seen = part.end_of(row)
            if row.seen == self._prompts.end(row.sequence):
                self._prompts.read(row.sequence, slots[row.sequence], row.seen)
            self._meter.fed(row.sequence, part.begin, row.seen)
            self._shared.note(row.sequence, slots[row.sequence], row.seen, done=False)

    def _finish(self, slots: Slots) -> None:
        """Note which rows are done; what they begin with is to be published."""
        for row in self._queue:
            if not row.done and self._ready(row):
                row.done = True
                self._prompts.read(row.sequence, slots[row.sequence], row.seen)
                self._shared.note(row.sequence, slots[row.sequence], row.seen, done=True)
                self._meter.finished(row.sequence)
