"""``Feeder``: reads prompts into a model's slots, chunk by chunk.

Rows being fed hold the slots behind the decoding ones, in the order in which they will join.
Prompts are fed in chunks between steps, so that a long one does not freeze the rows that decode.
What several prompts begin with is computed once: the others wait for the first one's blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import mlx.core as mx

from mlx_spec.cache.prefix import PrefixCache
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.batch_state import upload
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.model.pace import power_of_two
from mlx_spec.model.runner import ModelRunner, Rows, pass_size
from mlx_spec.model.similar_lengths import similar_lengths
from mlx_spec.sequence import Sequence

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


class Feeder:
    """Feeds the prompts of the rows that stand right behind the decoding ones.

    Args:
        runner: the model with its slots.
        batching: how many prompt tokens are fed at once, and what is kept of repeated beginnings.
        meter: where what was fed is counted.
    """

    def __init__(self, runner: ModelRunner, batching: BatchingConfig, meter: StepMeter) -> None:
        self.stopping: Callable[[], bool] = lambda: False
        self._groups: list[PrefillGroup] = []
        self._done: list[Sequence] = []  # not empty between calls only after an interrupt
        self._to_feed = 0  # tokens of all prompts fed since nobody's was
        self._prefix = PrefixCache(batching.block_size, batching.prefix_cache_bytes)
        self._runner, self._batching, self._meter = runner, batching, meter

    @property
    def sequences(self) -> list[Sequence]:
        """Sequences whose prompts are being fed, in slot order."""
        return self._done + [s for group in self._groups for s in group.sequences]

    @property
    def cached(self) -> list[int]:
        """Tokens that each of their slots holds."""
        done = [sequence.length - 1 for sequence in self._done]
        return done + [group.fed for group in self._groups for _ in group.sequences]

    @property
    def progress(self) -> tuple[int, int]:
        """Tokens in the cache, and all tokens, of the prompts fed since nobody's was."""
        missing = sum(max(0, s.length - 1 - g.fed) for g in self._groups for s in g.sequences)
        return max(0, self._to_feed - missing - self._runner.unread), self._to_feed

    @property
    def prefix_bytes(self) -> int:
        """Bytes of repeated beginnings kept."""
        return self._prefix.nbytes

    def arrange(self, newcomers: Seq[Sequence], read: Collection[Sequence]) -> list[Sequence]:
        """Take newcomers in; return them in the order in which they take slots.

        Args:
            newcomers: rows to come.
            read: those among them whose K/V are there already.
        """
        back = [PrefillGroup([s], s.length - 1, looked_up=True) for s in newcomers if s in read]
        groups = back + self._group([s for s in newcomers if s not in read])
        if not self._groups:
            self._to_feed = 0
        self._to_feed += sum(sequence.length - 1 for sequence in newcomers)
        self._groups += groups
        return [sequence for group in groups for sequence in group.sequences]

    def drop(self, leaving: Collection[Sequence]) -> None:
        """Forget rows that leave."""
        self._done = [sequence for sequence in self._done if sequence not in leaving]
        for group in self._groups:
            group.sequences = [s for s in group.sequences if s not in leaving]
        self._groups = [group for group in self._groups if group.sequences]

    def keep_prefix(self, slot: int, sequence: Sequence) -> None:
        """Copy the whole blocks of a row into the prefix cache."""
        self._prefix.store(sequence.cached_tokens, self._runner.pool, slot)

    def feed(self, first: int) -> list[Sequence]:
        """Feed prompts, up to one chunk; return the rows that are done, in slot order.

        While rows decode a chunk is at most ``prefill_interleave`` tokens, or one a row where more
        rows than that are fed together, and it is done when this returns. Else nobody waits for the
        next step, but for a turn: this returns after ``TURN`` seconds, and goes on next time.

        Args:
            first: slot of the first row that is fed; those before it decode.
        """
        started, fed = time.perf_counter(), 0
        done = self._done
        budget = self._budget(first)
        while self._groups and self._computed(first + len(done)) and fed < budget:
            if not self._groups[0].looked_up:
                self._reuse(first + len(done))
            group = self._groups[0]
            if group.missing > 0:
                if fed and len(group.sequences) > budget - fed:
                    break  # not even a token a row
                fed += self._feed(group, first + len(done), budget - fed)
                if not self._computed(first + len(done)):
                    break
            if group.missing <= 0:
                for sequence in self._groups.pop(0).sequences:
                    self._finish(first + len(done), sequence)
                    done.append(sequence)
        self._meter.prompt_seconds += time.perf_counter() - started
        self._done = []
        return done

    def _budget(self, decoding: int) -> int:
        """Most tokens of a chunk."""
        if decoding:
            return self._runner.timely(self._batching.prefill_interleave)
        return pass_size(self._batching.prefill_step_size)

    def _computed(self, decoding: int) -> bool:
        """Go on with the pass that was begun for a turn; whether it is done.

        Where rows decode it must be, since their next step needs it.
        """
        while not self._runner.proceed(TURN):
            if not decoding or self.stopping():
                return False
        return True

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

    def _reuse(self, first: int) -> None:
        """Before the first group is fed: take over what the prefix cache has of its rows."""
        group = self._groups[0]
        matches = [self._prefix.match(s.cached_tokens) for s in group.sequences]
        group.looked_up = True
        if not any(matches):
            return
        # Rows that share less than the first one do are fed on their own, afterwards.
        fed = matches[0]
        count = next((i for i, match in enumerate(matches) if match != fed), len(matches))
        if count < len(matches):
            self._groups.insert(1, PrefillGroup(group.sequences[count:]))
            group.sequences = group.sequences[:count]
        for slot, sequence in enumerate(group.sequences, start=first):
            row = self._prefix.read(sequence.cached_tokens)
            if row:
                self._runner.pool.load(slot, 0, row)
                read = _read_on(sequence, fed)
                sequence.reused += read
                self._meter.reused_tokens += read
                self._meter.prompt_tokens += read
        group.fed = fed

    def _feed(self, group: PrefillGroup, first: int, budget: int) -> int:
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
        self._runner.begin(Rows(tokens, starts, end, first, uniform=True))
        for sequence in group.sequences:
            read = _read_on(sequence, end)
            self._meter.prompt_tokens += read
            computed = max(0, min(end, sequence.length - 1) - group.fed)
            self._meter.recomputed_tokens += max(0, computed - read)
        group.fed = end
        return count * width

    def _finish(self, slot: int, sequence: Sequence) -> None:
        """A row's prompt is in its slot."""
        self.keep_prefix(slot, sequence)
        # The last token is computed by the first step.
        self._meter.prompt_tokens += _read_on(sequence, sequence.length, pending=0)


def _read_on(sequence: Sequence, end: int, pending: int = 1) -> int:
    """Note that a row's tokens before ``end`` are in the cache; how many of its prompt are new."""
    known = max(sequence.read, min(end, len(sequence.prompt) - pending))
    new, sequence.read = known - sequence.read, known
    return new
