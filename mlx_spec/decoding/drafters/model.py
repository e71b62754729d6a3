"""``ModelDrafter``: a small model guesses, with the same noise as the target.

Its KV cache may lag behind the known tokens by any number: after a plain step by one more, for a
newcomer by the whole prompt. A few tokens ride in front of the next proposal; more are read piece
by piece, as the target's prompts are, once drafts are wanted. Rows that never speculate never pay
for it. A row is in one of two states::

    read by the Feeder                           riding
    position   0 . . . . seen . . . host         0 . . . . . . . . lengths
    in cache   ==========                        ============      |
    missing              |---------->|           (at least)  |---->|
                         absolute: ``seen``       relative to device lengths: ``lag``

      join -> Feeder   seen = what the prefix cache has
      Feeder -> riding when host + flying - seen <= MAX_RIDE; lag is that number
      riding           a proposal makes lag STEADY_LAG whatever is accepted; a plain step adds 1
      riding -> Feeder when lag > MAX_RIDE; seen = host + flying - lag

``host`` is what the host knows of a row, ``lengths`` what the device does, once the step in flight
(``flying`` is 1, else 0) has ended. That step adds exactly 1 to a row that drafts nothing, so the
lag of a row that begins to ride is exact; to a riding row it adds 1 or more, so that ``seen`` of a
row that stops riding is what is in the cache for sure.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx

from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext, Trial
from mlx_spec.decoding.drafters.choosing import Guessing, known_at
from mlx_spec.decoding.drafters.riding import MAX_RIDE as MAX_RIDE
from mlx_spec.decoding.drafters.riding import STEADY_LAG, FoldedRiding, Riding
from mlx_spec.decoding.feeding import Feeder
from mlx_spec.model.pace import Chunk
from mlx_spec.model.replay import Replay
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence


class ModelDrafter(BaseDrafter):
    """Drafts with a model that shares the target's token map.

    Args:
        runner: the draft model with its slots.
        batching: how many tokens are read before a step, and what is kept of repeated beginnings.
        replay: of the runner's passes, where traces pay; None describes every pass.
        guessing: how tokens are chosen.
    """

    def __init__(
        self,
        runner: ModelRunner,
        batching: BatchingConfig | None = None,
        replay: Replay | None = None,
        guessing: Guessing | None = None,
    ) -> None:
        self.runner = runner
        self._guessing = guessing or Guessing()
        self.runners = (runner,)
        self._forward = runner.forward if replay is None else replay.forward
        self._feeder = Feeder(runner, batching or BatchingConfig(), ride=MAX_RIDE)
        self._rows: list[Sequence] = []
        self._riding = FoldedRiding() if runner.pool.folds else Riding()

    @property
    def spare(self) -> int:  # type: ignore[override]
        """Positions beyond a row's end that are written before its draft."""
        return self._riding.spare

    @property
    def prefix_bytes(self) -> int:  # type: ignore[override]
        """Bytes of repeated beginnings kept."""
        return self._feeder.prefix_bytes

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Take slots for newcomers, to be read with their first draft."""
        pool = self.runner.pool
        pool.acquire(len(sequences))
        pool.reserve(longest)
        self._feeder.add(sequences)
        self._rows += sequences
        self._riding.join(len(sequences))

    def keep(self, order: Seq[int]) -> None:
        """Move rows to their new slots and give the others back, their prefixes kept."""
        self._feeder.publish()
        self._riding.look(self._rows)
        leaving = set(range(len(self._rows))) - set(order)
        for row in leaving:
            self._feeder.keep(row, self._rows[row], self._seen(row))
        self._feeder.drop([self._rows[row] for row in leaving])
        self.runner.pool.keep(order)
        self._riding.keep(order)
        self._rows = [self._rows[row] for row in order]

    def _seen(self, row: int, flying: int = 0) -> int:
        """Tokens from the first on that a row's slot holds for sure."""
        sequence = self._rows[row]
        if self._riding.lag[row] is None:
            return self._feeder.seen(sequence)
        return self._riding.seen(row, sequence.length + flying)

    def feed(self, flying: int) -> Chunk | None:
        """Read of rows that lag far behind, the first ones first."""
        riding = self._riding
        self._feeder.publish()
        riding.look(self._rows)
        if not flying:
            riding.count(self._rows)
        for row, sequence in enumerate(self._rows):
            if riding.far(row):
                self._feeder.add([sequence], {sequence: self._seen(row, flying)})
                riding.lag[row] = None
        if None not in riding.lag:
            return None
        # Rows that are covered have streams to keep alive; without them nobody waits.
        nobody = all(lag is None for lag in riding.lag)
        slots = {sequence: row for row, sequence in enumerate(self._rows)}
        chunk = self._feeder.build(slots, flying, alone=nobody)
        for sequence, seen in self._feeder.take(in_order=False).items():
            riding.board(slots[sequence], seen, sequence.length + flying)
        return chunk

    def covers(self) -> list[bool]:
        """Rows that lag by no more than rides in the first draft pass."""
        return self._riding.covers()

    def skip(self, most: int = 1) -> None:
        """Each riding row lacks one token more, or a number that the host counts."""
        self._riding.look(self._rows)
        self._riding.skip(self._rows, most)

    def propose(self, context: DraftContext, count: int) -> Draft:
        """Samples of the draft model at positions ``lengths ..``."""
        self._riding.look(self._rows)
        if context.known is not None:
            self._riding.count(self._rows)
        ride, covered = self._riding.first(context), self._riding.covers()
        self._riding.proposed(context, count)
        tokens = self._span(context.tokens, ride.starts, ride.width)
        since = max(0, context.shortest - ride.width)
        logits = self._forward(
            Rows(tokens, ride.starts, ride.limit, counts=ride.counts, at=ride.at, since=since)
        )
        if ride.last is None:
            logits = logits[:, -1:]
        else:
            logits = mx.take_along_axis(logits, ride.last[:, None, None], axis=1)
        # What guesses are folded into is nobody's: the next proposal goes on from what is known.
        known = self.runner.pool.folded() if count > 1 else []
        own = None if all(covered) else mx.array(covered, mx.int32)
        draft = [self._guessing.choose(context, logits, [])]
        for step in range(1, count):
            if context.enough:
                break
            starts, at = context.lengths + (step - 1), known_at(context, step - 1)
            limit, since = context.longest + step, context.shortest + step - 1
            rows = Rows(draft[-1], starts, limit, counts=own, at=at, since=since)
            draft.append(self._guessing.choose(context, self._forward(rows), draft))
        for layer, arrays in known:
            layer.arrays = arrays
        return context.draft(draft)

    def _span(self, tokens: mx.array, starts: mx.array, width: int) -> mx.array:
        """[B, width] of ``tokens`` [B, C] from each row's start, as the draft model can read it."""
        positions = starts[:, None] + mx.arange(width, dtype=mx.int32)
        # The target may know tokens that a smaller embedding lacks: any other one will do.
        known = mx.take_along_axis(tokens, positions, axis=1)
        return mx.minimum(known, self.runner.vocabulary - 1)

    def trial(self) -> Trial:
        """As any model's passes; the first one reads what the row has gained, too."""
        runner = self.runner
        return Trial(runner.trial, (runner.model,), first=STEADY_LAG, key_share=runner.key_share)

    def landing(self) -> None:
        """Note what was read with the step in flight."""
        self._riding.look(self._rows)

    def snapshot(self) -> Any:
        """Cache arrays, and what rows lack, by reference. What the Feeder has read is absolute: no
        proposal changes it."""
        self._riding.look(self._rows)
        return self.runner.pool.snapshot(), self._riding.copy()

    def restore(self, snapshot: Any) -> None:
        """Take them back."""
        arrays, riding = snapshot
        self.runner.pool.restore(arrays)
        self._riding = riding.copy()
