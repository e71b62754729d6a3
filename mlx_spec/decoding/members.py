"""Who holds which slot: rows that decode, rows whose prompts are being fed, those to come and go.

Decoding rows hold the first slots, rows being fed the ones after them, in the order in which they
will join. Prompts are fed in chunks between steps, so that a long one does not freeze the rows
that decode. Everything here happens at step boundaries, when no step is in flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import mlx.core as mx

from mlx_spec.cache.pool import RowKV, SlotSize, fill_holes
from mlx_spec.cache.prefix import PrefixCache
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.batch_state import BatchState, upload
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.model.pace import power_of_two
from mlx_spec.model.runner import ModelRunner, Rows, pass_size
from mlx_spec.model.similar_lengths import similar_lengths
from mlx_spec.sequence import Sequence

# Room beyond a row's known tokens that the next steps may write to before it must grow.
MARGIN = 2
# Seconds of reading prompts after which cancelled requests, newcomers and closing have their turn.
TURN = 0.5


@dataclass
class PrefillGroup:
    """Neighbouring rows whose prompts are being fed together.

    Attributes:
        sequences: the rows, in slot order.
        fed: tokens of each that are in the cache.
        looked_up: whether the prefix cache was asked.
    """

    sequences: list[Sequence]
    fed: int = 0
    looked_up: bool = False

    @property
    def missing(self) -> int:
        """Tokens of the longest row still to be fed; the last known one stays pending."""
        return max(sequence.length for sequence in self.sequences) - 1 - self.fed


class Members:
    """The members of a batch and their slots.

    Args:
        runner, drafter, state, meter: the decoder's own.
        batching: rows, and how many prompt tokens are fed at once.
    """

    def __init__(
        self,
        runner: ModelRunner,
        drafter: Drafter,
        state: BatchState,
        meter: StepMeter,
        batching: BatchingConfig,
    ) -> None:
        self.max_rows = batching.batch_size
        self.stopping: Callable[[], bool] = lambda: False
        self.leaving: set[Sequence] = set()
        self.waiting: list[Sequence] = []
        self.size: SlotSize | None = None
        self._prefilling: list[PrefillGroup] = []
        self._to_feed = 0  # tokens of all prompts fed since nobody's was
        self._saving: set[Sequence] = set()
        self._saved: dict[Sequence, RowKV] = {}
        self._prefix = PrefixCache(batching.block_size, batching.prefix_cache_bytes)
        self._runner, self._drafter, self._state = runner, drafter, state
        self._meter, self._batching = meter, batching

    @property
    def prefilling(self) -> list[Sequence]:
        """Sequences whose prompts are being fed, in slot order."""
        return [sequence for group in self._prefilling for sequence in group.sequences]

    @property
    def staying(self) -> int:
        """Rows held by sequences that do not leave."""
        return len(self._state) + len(self.prefilling) - len(self.leaving)

    @property
    def cached(self) -> list[int]:
        """Tokens that each row's slot holds, in slot order."""
        decoding = [sequence.length - 1 for sequence in self._state.sequences]
        return decoding + [group.fed for group in self._prefilling for _ in group.sequences]

    @property
    def progress(self) -> tuple[int, int]:
        """Tokens in the cache, and all tokens, of the prompts fed since nobody's was."""
        missing = sum(max(0, s.length - 1 - g.fed) for g in self._prefilling for s in g.sequences)
        return max(0, self._to_feed - missing - self._runner.unread), self._to_feed

    @property
    def settled(self) -> bool:
        """Whether the next step has the same rows and no prompt is being fed."""
        return not (self.waiting or self.leaving or self._prefilling)

    def leave(self, sequence: Sequence, *, save: bool = False) -> None:
        """Let a sequence go at the next boundary; ``save`` keeps its K/V for its return."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        if sequence in self._state.sequences or sequence in self.prefilling:
            self.leaving.add(sequence)
            if save and sequence in self._state.sequences:
                self._saving.add(sequence)

    def forget(self, sequence: Sequence) -> bool:
        """Drop K/V saved for a sequence, if any: if it returns they are computed again."""
        known = sequence in self._saving or sequence in self._saved
        self._saving.discard(sequence)
        self._saved.pop(sequence, None)
        return known

    @property
    def kept_bytes(self) -> int:
        """Bytes of K/V saved for sequences that may return."""
        rows = self._saved.values()
        return sum(array.nbytes for row in rows for layer in row for array in layer)

    @property
    def saved_bytes(self) -> int:
        """The same after the next boundary: those about to be saved are in it."""
        tokens = sum(sequence.length - 1 for sequence in self._saving)
        return self.kept_bytes + tokens * self._runner.bytes_per_token

    @property
    def prefix_bytes(self) -> int:
        """Bytes of repeated beginnings kept."""
        return self._prefix.nbytes + self._drafter.prefix_bytes

    def change(self) -> None:
        """Let rows leave and newcomers take slots."""
        if self.leaving:
            self._release()
        if self.size is not None:
            members = [*self._state.sequences, *self.prefilling, *self.waiting]
            needed = max((sequence.length for sequence in members), default=0) + MARGIN
            for runner in (self._runner, *self._drafter.runners):
                runner.pool.fit(self.size, needed)
            self.size = None
        if self.waiting:
            self._admit()

    def fill(self) -> bool:
        """Feed prompts, up to one chunk; return whether rows joined the decoding ones.

        While rows decode a chunk is at most ``prefill_interleave`` tokens, or one a row where more
        rows than that are fed together, and it is done when this returns. Else nobody waits for the
        next step, but for a turn: this returns after ``TURN`` seconds, and goes on next time.
        """
        started, fed, joined = time.perf_counter(), 0, False
        budget = self._budget()
        while self._prefilling and self._computed() and fed < budget:
            if not self._prefilling[0].looked_up:
                self._reuse()
            group = self._prefilling[0]
            if group.missing > 0:
                if fed and len(group.sequences) > budget - fed:
                    break  # not even a token a row
                fed += self._feed(group, budget - fed)
                if not self._computed():
                    break
            if group.missing <= 0:
                self._join(self._prefilling.pop(0).sequences)
                joined = True
        self._meter.prompt_seconds += time.perf_counter() - started
        return joined

    def _budget(self) -> int:
        """Most tokens of a chunk."""
        if self._state.sequences:
            return self._runner.timely(self._batching.prefill_interleave)
        return pass_size(self._batching.prefill_step_size)

    def _computed(self) -> bool:
        """Go on with the pass that was begun for a turn; whether it is done.

        Where rows decode it must be, since their next step needs it.
        """
        while not self._runner.proceed(TURN):
            if not self._state.sequences or self.stopping():
                return False
        return True

    def _release(self) -> None:
        """Move rows together, copying as few as possible."""
        decoding = self._state.sequences
        for slot, sequence in enumerate(decoding):
            if sequence in self._saving:
                self._saved[sequence] = self._runner.pool.read(slot, 0, sequence.length - 1)
            elif sequence in self.leaving and sequence.finish_reason and not sequence.error:
                self._keep_prefix(slot, sequence)  # a chat goes on where it ended
        self._saving.clear()
        rows = len(decoding)
        order = fill_holes(rows, [i for i, s in enumerate(decoding) if s in self.leaving])
        fed = [rows + i for i, s in enumerate(self.prefilling) if s not in self.leaving]
        self._runner.pool.keep(order + fed)
        self._drafter.keep(order)
        self._state.rearrange(order, [])
        for group in self._prefilling:
            group.sequences = [s for s in group.sequences if s not in self.leaving]
        self._prefilling = [group for group in self._prefilling if group.sequences]
        self.leaving.clear()

    def _admit(self) -> None:
        """Give newcomers slots, in the order in which they will join."""
        back = [sequence for sequence in self.waiting if sequence in self._saved]
        groups = self._group([s for s in self.waiting if s not in self._saved])
        new = [sequence for group in groups for sequence in group.sequences]
        self.waiting.clear()
        if not self._prefilling:
            self._to_feed = 0
        self._to_feed += sum(sequence.length - 1 for sequence in back + new)
        pool = self._runner.pool
        first = pool.acquire(len(back) + len(new))
        pool.reserve(max(sequence.length for sequence in back + new) + MARGIN)
        for slot, sequence in enumerate(back, start=first):
            pool.write(slot, 0, self._saved.pop(sequence))
            self._prefilling.append(PrefillGroup([sequence], sequence.length - 1, looked_up=True))
        self._prefilling += groups

    def _group(self, sequences: Seq[Sequence]) -> list[PrefillGroup]:
        """Who is fed together: neighbours of similar length waste little when padded alike.

        A sequence that begins as an earlier one does, by a block or more, waits for that one's
        K/V instead of computing the same once more.
        """
        leaders: list[Sequence] = []
        followers: list[Sequence] = []
        begun: set[bytes] = set()
        for sequence in sorted(sequences, key=lambda s: s.length):
            keys = self._prefix.keys(sequence.cached_tokens) if self._prefix.limit else []
            fresh = [key for key in keys if key not in self._prefix]
            (followers if begun.intersection(fresh) else leaders).append(sequence)
            begun.update(fresh)
        groups = []
        for members in (leaders, followers):
            for begin, end in similar_lengths([sequence.length for sequence in members]):
                groups.append(PrefillGroup(members[begin:end]))
        return groups

    def _reuse(self) -> None:
        """Before the first group is fed: take over what the prefix cache has of its rows."""
        group, first = self._prefilling[0], len(self._state)
        matches = [self._prefix.match(s.cached_tokens) for s in group.sequences]
        group.looked_up = True
        if not any(matches):
            return
        # Rows that share less than the first one do are fed on their own, afterwards.
        fed = matches[0]
        count = next((i for i, match in enumerate(matches) if match != fed), len(matches))
        if count < len(matches):
            self._prefilling.insert(1, PrefillGroup(group.sequences[count:]))
            group.sequences = group.sequences[:count]
        for slot, sequence in enumerate(group.sequences, start=first):
            row = self._prefix.read(sequence.cached_tokens)
            if row is not None:
                self._runner.pool.write(slot, 0, row)
                read = _read_on(sequence, fed)
                sequence.reused += read
                self._meter.reused_tokens += read
                self._meter.prompt_tokens += read
        group.fed = fed

    def _feed(self, group: PrefillGroup, budget: int) -> int:
        """Begin a chunk of at most ``budget`` tokens (or one a row); return their number.

        It ends at a multiple of a power of two: K/V of a prompt that is fed alone do not depend on
        where the traffic happened to cut it.
        """
        count = len(group.sequences)
        width = min(group.missing, max(1, budget // count))
        over = (group.fed + width) % power_of_two(width)
        if over < width < group.missing:
            width -= over
        tokens, _ = upload(group.sequences, group.fed, group.fed + width)
        starts = mx.full((count,), group.fed, mx.int32)
        end = group.fed + width
        # The first group stands right behind the decoding rows.
        rows = Rows(tokens, starts, end, first=len(self._state), uniform=True)
        self._runner.begin(rows)
        for sequence in group.sequences:
            read = _read_on(sequence, end)
            self._meter.prompt_tokens += read
            computed = max(0, min(end, sequence.length - 1) - group.fed)
            self._meter.recomputed_tokens += max(0, computed - read)
        group.fed = end
        return count * width

    def _join(self, sequences: Seq[Sequence]) -> None:
        """Rows whose prompts are in the cache begin to decode."""
        for slot, sequence in enumerate(sequences, start=len(self._state)):
            self._keep_prefix(slot, sequence)
            # The last one is computed by the first step.
            self._meter.prompt_tokens += _read_on(sequence, sequence.length, pending=0)
        self._state.rearrange(range(len(self._state)), sequences)
        longest = max(sequence.length for sequence in self._state.sequences) + MARGIN
        self._state.reserve(longest)
        self._drafter.join(sequences, longest)

    def _keep_prefix(self, slot: int, sequence: Sequence) -> None:
        """Copy the whole blocks of a row into the prefix cache."""
        self._prefix.store(sequence.cached_tokens, self._runner.pool, slot)


def _read_on(sequence: Sequence, end: int, pending: int = 1) -> int:
    """Note that a row's tokens before ``end`` are in the cache; how many of its prompt are new."""
    known = max(sequence.read, min(end, len(sequence.prompt) - pending))
    new, sequence.read = known - sequence.read, known
    return new
