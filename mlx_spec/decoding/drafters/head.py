"""``HeadDrafter``: a head reads what the target computed anyway, and guesses from it.

A pair at position p is [token p + 1, hidden state of the target at p]; what the head makes of it
stands for the hidden state at p + 1, hence for token p + 2. After a step every row has new pairs,
as many as tokens it gained, and whoever drafts next reads the last one again::

    known      a b c d | x y z        seen up to c, d was pending; x y stand, z is the target's own
    step reads         d x y u        hidden states of d x y (and of u, which nobody wants)
    pairs              dx xy yz       written to the head's K/V, at the positions of d x y
    propose                  yz       read: guess 1; then [guess 1, its own state], and so on, over
                                      positions that the next step's pairs are written to again

So each step is written once, whether it drafted or not: by the next proposal, or by ``skip``, which
takes keys and values alone. A prompt's pairs are written with its chunk (``fed``). Nothing is ever
unknown but the newest pair of a row whose texts came from elsewhere (saved, or all of the prompt
from the prefix cache): it drafts from its second step on (``covers``).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx

from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext, Trial
from mlx_spec.decoding.drafters.choosing import Guessing, probable
from mlx_spec.decoding.heard import Fed, Verified
from mlx_spec.model.heads.head import Head
from mlx_spec.model.heads.slots import HeadRows, HeadSlots
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class Pairs:
    """The newest pairs of each row.

    Attributes:
        tokens: [B, W] int32, token p + 1.
        hidden: [B, W, S * D] of the target, at p.
        starts: [B] int32, the first p.
        counts: [B] int32, how many are a row's.
        ready: which rows have one at all, as far as the host knows.
        written: whether the head's K/V have them.
    """

    tokens: mx.array
    hidden: mx.array
    starts: mx.array
    counts: mx.array
    ready: tuple[bool, ...]
    written: bool = False

    def rows(self, order: Seq[int]) -> Pairs:
        """New row i was row ``order[i]``."""
        index = mx.array(list(order), mx.int32)
        return Pairs(
            self.tokens[index],
            self.hidden[index],
            self.starts[index],
            self.counts[index],
            tuple(self.ready[row] for row in order),
            self.written,
        )

    def beside(self, others: Pairs) -> Pairs:
        """These rows and others behind them; the narrower ones are padded."""
        width = max(self.tokens.shape[1], others.tokens.shape[1])
        both = [self._widened(width), others._widened(width)]
        return Pairs(
            mx.concatenate([pairs.tokens for pairs in both]),
            mx.concatenate([pairs.hidden for pairs in both]),
            mx.concatenate([pairs.starts for pairs in both]),
            mx.concatenate([pairs.counts for pairs in both]),
            self.ready + others.ready,
            self.written and others.written,
        )

    def _widened(self, width: int) -> Pairs:
        more = width - self.tokens.shape[1]
        if more == 0:
            return self
        tokens = mx.pad(self.tokens, [(0, 0), (0, more)])
        return replace(self, tokens=tokens, hidden=mx.pad(self.hidden, [(0, 0), (0, more), (0, 0)]))

    def last(self) -> Pairs:
        """Each row's newest one alone."""
        if self.tokens.shape[1] == 1:
            return self
        at = mx.maximum(self.counts - 1, 0)
        return replace(
            self,
            tokens=mx.take_along_axis(self.tokens, at[:, None], axis=1),
            hidden=mx.take_along_axis(self.hidden, at[:, None, None], axis=1),
            starts=self.starts + at,
        )


class HeadDrafter(BaseDrafter):
    """Drafts with a head over the target's own slots.

    Args:
        head: what guesses.
        runner: the target.
        most: longest draft; positions that pairs of a wide step may be written to past a row's end.

    Raises:
        UnsupportedModel: the head does not fit.
    """

    def __init__(self, head: Head, runner: ModelRunner, most: int) -> None:
        self.spare = most + 1
        self._slots = HeadSlots(head, runner)
        self._pairs: Pairs | None = None
        # Of rows that are being fed: the last hidden state, and of how many tokens.
        self._fed: WeakKeyDictionary[Sequence, tuple[int, mx.array]] = WeakKeyDictionary()

    def fed(self, chunk: Fed) -> None:
        """Write the pairs of a prompt's chunk."""
        rows, states = chunk.rows, self._slots.begin(chunk.hidden)
        self._slots.write(HeadRows(chunk.following, states, rows.starts, rows.first))
        begin = rows.limit - rows.tokens.shape[1]
        for place, (sequence, end) in enumerate(zip(chunk.sequences, chunk.ends, strict=True)):
            last = chunk.hidden[place : place + 1, end - begin - 1 : end - begin]
            self._fed[sequence] = end, last

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Newcomers' last pairs, where their prompts were read here."""
        for sequence in sequences:
            new = self._newest(sequence)
            self._pairs = new if self._pairs is None else self._pairs.beside(new)

    def _newest(self, sequence: Sequence) -> Pairs:
        length = sequence.length
        end, hidden = self._fed.pop(sequence, (0, self._nothing))
        ready = end == length - 1 > 0
        return Pairs(
            mx.array([sequence.known(length - 1, length)], mx.int32),
            hidden if ready else self._nothing,
            # One that is not there is written to where the next step's comes: not over a pair that
            # was saved with the row.
            mx.array([length - 2 if ready else length - 1], mx.int32),
            mx.array([int(ready)], mx.int32),
            (ready,),
            True,
        )

    def keep(self, order: Seq[int]) -> None:
        """Rows move, and what is known of them."""
        if self._pairs is not None:
            self._pairs = self._pairs.rows(order) if order else None

    def trial(self) -> Trial:
        """One guess of each row, from a hidden state."""
        slots = self._slots
        return Trial(lambda rows, width=1: slots.trial(rows), slots.models, part="head")

    def covers(self) -> list[bool] | None:
        """Rows with a pair."""
        if self._pairs is None or all(self._pairs.ready):
            return None
        return list(self._pairs.ready)

    def verified(self, step: Verified) -> None:
        """What each row gained are its new pairs."""
        assert step.hidden is not None
        ready = (True,) * len(step.accepted)
        self._pairs = Pairs(step.samples, step.hidden, step.starts, step.accepted + 1, ready)

    def skip(self, most: int = 1) -> None:
        """Nothing is guessed; the pairs are written all the same."""
        self.settle()

    def settle(self) -> None:
        """Write the pairs that no proposal has read."""
        pairs = self._pairs
        if pairs is None or pairs.written:
            return
        # What is no number is the row's own trouble for one step, not for the rest of its text.
        hidden = mx.where((pairs.counts > 0)[:, None, None], pairs.hidden, 0)
        self._slots.write(HeadRows(pairs.tokens, self._slots.begin(hidden), pairs.starts))
        self._pairs = replace(pairs, written=True)

    def propose(self, context: DraftContext, count: int) -> Draft:
        """Guesses from the newest pair of each row, and from the head's own states behind it."""
        assert self._pairs is not None
        self.settle()
        newest = self._pairs.last()
        token, states = newest.tokens, self._slots.begin(newest.hidden)
        draft: list[mx.array] = []
        for step in range(count):
            rows = HeadRows(token, states, newest.starts + step)
            states = self._slots.read(rows, context.longest + step)
            token = self._choose(context, self._slots.logits(states), draft)
            draft.append(token)
            if context.enough:
                break
        return context.draft(draft)

    def _choose(self, context: DraftContext, logits: mx.array, draft: list[mx.array]) -> mx.array:
        """[B, 1]: by the target's noise and rules, which go by its own ids."""
        tokens = self._slots.tokens
        if tokens is None:
            return Guessing().choose(context, logits, draft)
        asked = context.rules or context.drawn is not None
        if not asked and len(context.sampling.rows.greedy) == len(logits):
            own = mx.argmax(logits, axis=-1)
            if context.sure is not None:
                context.sure.add(probable(logits, own))
            return tokens[own]
        everywhere = mx.full((*logits.shape[:2], context.vocabulary), -mx.inf, logits.dtype)
        places = mx.broadcast_to(tokens, logits.shape)
        spread = mx.put_along_axis(everywhere, places, logits, axis=-1)
        return Guessing().choose(context, spread, draft)

    @property
    def _nothing(self) -> mx.array:
        """A hidden state for rows that have none."""
        return mx.zeros((1, 1, self._slots.width), self._slots.parts.dtype)

    def snapshot(self) -> Any:
        """The pairs, by reference; the K/V are the target's affair."""
        return self._pairs

    def restore(self, snapshot: Any) -> None:
        """Take them back."""
        self._pairs = snapshot
