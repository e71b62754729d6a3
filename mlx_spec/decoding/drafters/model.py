"""``ModelDrafter``: a small model guesses, with the same noise as the target.

Its KV cache may lag behind the known tokens by any number: after a plain step by one more, for a
newcomer by the whole prompt. A few tokens ride in front of the next proposal; more are read chunk
by chunk, between steps, once drafts are wanted. Rows that never speculate never pay for it. What
several newcomers' prompts share is read once: the others take it over, from the prefix cache where
an earlier row has it, or from the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import takewhile
from typing import Any

import mlx.core as mx

from mlx_spec.cache.prefix import PrefixCache
from mlx_spec.decoding.drafters.base import DraftContext
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence

# After a proposal the cache lacks the last draft token, if it was accepted, and the pending one.
STEADY_LAG = 2
# A lag up to this rides in the first draft pass; more is read beforehand, without logits.
MAX_RIDE = 8


class ModelDrafter:
    """Drafts with a model that shares the target's token map.

    Args:
        runner: the draft model with its slots.
        prefill_step_size: most tokens of one catch-up pass.
        prefill_interleave: most tokens read before a step, where some rows need not wait for it.
        prefix: repeated beginnings of the draft model; None keeps none.
    """

    def __init__(
        self,
        runner: ModelRunner,
        prefill_step_size: int = 2048,
        prefill_interleave: int = 512,
        prefix: PrefixCache | None = None,
    ) -> None:
        self.runner = runner
        # Not "or": a cache that holds nothing yet is false.
        self._prefix = PrefixCache(1, 0) if prefix is None else prefix
        self._rows: list[Sequence] = []
        self._published: set[Sequence] = set()
        self._keys: dict[Sequence, list[bytes]] = {}  # of what they were known to hold at first
        self._step_size, self._interleave = prefill_step_size, prefill_interleave
        # Per row: upper bound of known tokens that the cache has not seen.
        self._lag: list[int] = []

    needs_host = False

    @property
    def prefix_bytes(self) -> int:
        """Bytes of repeated beginnings kept."""
        return self._prefix.nbytes

    @property
    def max_draft_tokens(self) -> int | None:
        """Any number."""
        return None

    @property
    def runners(self) -> tuple[ModelRunner, ...]:
        """The draft model's."""
        return (self.runner,)

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Take slots for newcomers; what the prefix cache lacks is fed with their first draft."""
        pool = self.runner.pool
        self._publish()
        first = pool.acquire(len(sequences))
        pool.reserve(longest)
        for slot, sequence in enumerate(sequences, start=first):
            known = sequence.cached_tokens
            row = self._prefix.read(known)
            if row:
                pool.load(slot, 0, row)
            self._keys[sequence] = self._prefix.keys(known) if self._prefix.limit else []
            self._lag.append(sequence.length - self._prefix.match(known))
            self._rows.append(sequence)

    def keep(self, order: Seq[int]) -> None:
        """Move rows to their new slots and give the others back, their prefixes kept."""
        pool = self.runner.pool
        for slot in set(range(len(self._rows))) - set(order):
            self._store(slot)
            self._published.discard(self._rows[slot])
            del self._keys[self._rows[slot]]
        pool.keep(order)
        self._lag = [self._lag[row] for row in order]
        self._rows = [self._rows[row] for row in order]

    def _publish(self) -> None:
        """Before newcomers look: rows that have caught up since give their beginnings away."""
        for slot, sequence in enumerate(self._rows):
            if self._lag[slot] <= MAX_RIDE and sequence not in self._published:
                self._store(slot)
                self._published.add(sequence)

    def _store(self, slot: int) -> None:
        """Keep in the prefix cache what a row's slot holds for sure."""
        sequence = self._rows[slot]
        self._prefix.store(sequence.cached_tokens[: self._seen(slot)], self.runner.pool, slot)

    def _seen(self, slot: int) -> int:
        """Tokens from the first on that a row's slot holds for sure."""
        return max(0, self._rows[slot].length - self._lag[slot])

    def catch_up(self, context: DraftContext) -> int:
        """Read of rows that lag far behind, the first ones first, up to the steady lag."""
        far = [lag > MAX_RIDE for lag in self._lag]
        # Rows that are covered have streams to keep alive; without them nobody waits.
        budget = self.runner.timely(self._step_size if all(far) else self._interleave)
        shares = self._shares()
        waiting = {row for rows in shares.values() for row in rows}
        read = self._read_far(context, waiting, budget)
        if self._take_over(context, shares):
            read += self._read_far(context, set(), budget - read)
        return read

    def covers(self) -> list[bool]:
        """Rows that lag by no more than rides in the first draft pass."""
        return [lag <= MAX_RIDE for lag in self._lag]

    def _shares(self) -> dict[tuple[int, int], list[int]]:
        """(row, number of its first tokens) -> other rows, far behind as well, that begin so."""
        far = [row for row, lag in enumerate(self._lag) if lag > MAX_RIDE]
        if len(far) < 2 or self._prefix.limit == 0:
            return {}
        shares: dict[tuple[int, int], list[int]] = {}
        holders: dict[bytes, int] = {}
        for row in sorted(far, key=self._seen, reverse=True):
            keys = self._keys[self._rows[row]]
            known = list(takewhile(holders.__contains__, keys))
            count = len(known) * self._prefix.block_size
            if count > self._seen(row):
                shares.setdefault((holders[known[-1]], count), []).append(row)
            else:
                holders.update((key, row) for key in keys if key not in holders)
        return shares

    def _take_over(self, context: DraftContext, shares: dict[tuple[int, int], list[int]]) -> bool:
        """Copy beginnings from rows that have been read by now; whether there were any."""
        # A step in flight may have lengthened rows beyond what the host knows.
        gained = context.longest - max(row.length for row in self._rows)
        done = [item for item in shares.items() if self._lag[item[0][0]] <= MAX_RIDE]
        for (source, count), rows in done:
            self.runner.pool.share(source, rows, count)
            for row in rows:
                self._lag[row] = self._rows[row].length + gained - count
        return bool(done)

    def _read_far(self, context: DraftContext, waiting: set[int], budget: int) -> int:
        """Read rows that lag far behind and wait for nobody; return the number of tokens."""
        wanted = [lag > MAX_RIDE and row not in waiting for row, lag in enumerate(self._lag)]
        read, row = 0, 0
        while row < len(wanted) and read < budget:
            if wanted[row]:
                count = self._together(row, wanted, budget - read)
                read += self._read(context, slice(row, row + count), budget - read)
                row += count
            else:
                row += 1
        return read

    def _together(self, first: int, wanted: Seq[bool], budget: int) -> int:
        """How many neighbours from row ``first`` on can be read as one, within ``budget``."""
        longest, count = self._lag[first], 1
        for row in range(first + 1, len(wanted)):
            longest = max(longest, self._lag[row])
            if not wanted[row] or (count + 1) * longest > budget:
                break
            count += 1
        return count

    def _read(self, context: DraftContext, rows: slice, budget: int) -> int:
        """Read one chunk of neighbours, none of whom becomes more than up to date."""
        lags = self._lag[rows]
        lag, count = max(lags), len(lags)
        width = min(lag - 1, max(1, budget // count))
        starts = mx.maximum(context.lengths[rows] - lag, 0)
        tokens = self._span(context.tokens[rows], starts, width)
        limit = max(context.longest, lag) - lag + width
        self.runner.feed(Rows(tokens, starts, limit, rows.start), self._step_size, wait=False)
        self._lag[rows] = [min(own, lag - width) for own in lags]
        return count * width

    def propose(self, context: DraftContext, count: int) -> mx.array:
        """[B, count] samples of the draft model at positions ``lengths ..``."""
        if count == 0:
            self._lag = [lag + 1 for lag in self._lag]
            return mx.zeros((context.lengths.shape[0], 0), mx.int32)
        # Rows that lag far behind ride along for nothing: what is written for them is garbage,
        # and written again when they are read.
        width = max(lag for lag in self._lag if lag <= MAX_RIDE)
        self._lag = [STEADY_LAG if lag <= MAX_RIDE else lag + 1 for lag in self._lag]
        starts = mx.maximum(context.lengths - width, 0)
        limit = max(context.longest, width)
        logits = self.runner.forward(Rows(self._span(context.tokens, starts, width), starts, limit))
        logits = _last_known(logits, context, starts, width)
        draft = [self._choose(context, logits, 0)]
        for step in range(1, count):
            starts = context.lengths + (step - 1)
            logits = self.runner.forward(Rows(draft[-1], starts, context.longest + step))
            draft.append(self._choose(context, logits, step))
        return mx.concatenate(draft, axis=1)

    def _choose(self, context: DraftContext, logits: mx.array, step: int) -> mx.array:
        positions = context.lengths[:, None] + step
        # A draft whose embeddings are padded to more must not propose what the target lacks.
        return context.sampling.choose(logits[..., : context.vocabulary], positions)

    def _span(self, tokens: mx.array, starts: mx.array, width: int) -> mx.array:
        """[B, width] of ``tokens`` [B, C] from each row's start, as the draft model can read it."""
        positions = starts[:, None] + mx.arange(width, dtype=mx.int32)
        # The target may know tokens that a smaller embedding lacks: any other one will do.
        known = mx.take_along_axis(tokens, positions, axis=1)
        return mx.minimum(known, self.runner.vocabulary - 1)

    def snapshot(self) -> Any:
        """Cache arrays and lags, by reference."""
        return self.runner.pool.snapshot(), list(self._lag)

    def restore(self, snapshot: Any) -> None:
        """Take them back."""
        arrays, lag = snapshot
        self.runner.pool.restore(arrays)
        self._lag = list(lag)


def _last_known(logits: mx.array, context: DraftContext, starts: mx.array, width: int) -> mx.array:
    """[B, 1, V]: the logits after each row's last known token."""
    if context.shortest >= width:
        return logits[:, -1:]
    last = context.lengths - 1 - starts
    return mx.take_along_axis(logits, last[:, None, None], axis=1)
