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

Of heads behind one another (``model/heads/stack``, whose picture it is) head k lacks the tokens of
a row's k newest positions. So the newest pairs of the step before stay, as many as there are heads
but one: their positions are written again when those tokens are known, whatever guesses stood
there. For a proposal all heads read the newest positions, with guesses for what is not known yet.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx

import metal_kernels
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext, Trial
from mlx_spec.decoding.drafters.choosing import Guessing
from mlx_spec.decoding.drafters.pairs import Pairs, shifted
from mlx_spec.decoding.heard import Fed, Verified
from mlx_spec.model.heads.head import Heads
from mlx_spec.model.heads.slots import HeadRows, HeadSlots
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence


class HeadDrafter(BaseDrafter):
    """Drafts with a head over the target's own slots.

    Args:
        head: what guesses.
        runner: the target.
        most: longest draft; positions that pairs of a wide step may be written to past a row's end.

    Raises:
        UnsupportedModel: the head does not fit.
    """

    reads_slots = True

    def __init__(self, head: Heads, runner: ModelRunner, most: int) -> None:
        self._slots = HeadSlots(head, runner)
        self._back = self._slots.depth - 1  # positions at which some head lacks tokens
        self.spare = most + 1 + self._back
        self._pairs: Pairs | None = None
        # Of rows that are being fed: the newest hidden states, and of how many tokens.
        self._fed: WeakKeyDictionary[Sequence, tuple[int, mx.array]] = WeakKeyDictionary()

    def fed(self, chunk: Fed) -> None:
        """Write the pairs of a prompt's chunk."""
        rows, states = chunk.rows, self._slots.begin(chunk.hidden)
        pairs = HeadRows(chunk.following, states, rows.starts, rows.first)
        self._write(pairs, chunk.further, rows.limit)
        for place, (sequence, end) in enumerate(zip(chunk.sequences, chunk.ends, strict=True)):
            count, wanted = end - chunk.begin, max(1, self._back)
            last = chunk.hidden[place : place + 1, max(0, count - wanted) : count]
            before, held = self._fed.get(sequence, (-1, last))
            if before == chunk.begin and count < wanted:
                last = mx.concatenate([held, last], axis=1)[:, -wanted:]
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
        count = hidden.shape[1] if ready else 1
        return Pairs(
            mx.array([sequence.known(length - count, length)], mx.int32),
            hidden if ready else self._nothing,
            # One that is not there is written to where the next step's comes: not over a pair that
            # was saved with the row.
            mx.array([length - 1 - count if ready else length - 1], mx.int32),
            mx.array([count if ready else 0], mx.int32),
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
        ready, counts = (True,) * len(step.accepted), step.accepted + 1
        # What is no number is the row's own trouble for one step, not for the rest of its text.
        hidden = mx.where((counts > 0)[:, None, None], step.hidden, 0)
        new = Pairs(step.samples, hidden, step.starts, counts, ready)
        if self._back and self._pairs is not None:
            new = self._pairs.tail(self._back).then(new)
        self._pairs = new

    def skip(self, most: int = 1) -> None:
        """Nothing is guessed; the pairs are written all the same."""
        self.settle()

    def settle(self) -> None:
        """Write the pairs that no proposal has read."""
        pairs = self._pairs
        if pairs is None or pairs.written:
            return
        states = self._slots.begin(pairs.hidden)
        self._write(HeadRows(pairs.tokens, states, pairs.starts), pairs.further)
        self._pairs = replace(pairs, written=True)

    def _write(
        self, pairs: HeadRows, further: Callable[[int], mx.array], limit: int | None = None
    ) -> None:
        """Keys and values of each head; ``further(k)`` is what head k reads."""
        for stage in range(self._back):
            own = replace(pairs, tokens=further(stage), stage=stage)
            if self._slots.chained:
                pairs = replace(pairs, states=self._slots.read(own, limit))
            else:
                self._slots.write(own)
        self._slots.write(replace(pairs, tokens=further(self._back), stage=self._back))

    def propose(self, context: DraftContext, count: int) -> Draft:
        """Guesses from the newest pairs of each row; behind the last head from its own states."""
        assert self._pairs is not None
        self.settle()
        newest = self._pairs.tail(max(1, self._back))
        at = mx.maximum(newest.counts - 1, 0)[:, None]
        given = states = self._slots.begin(newest.hidden)
        known, limit = newest.tokens, context.longest + newest.tokens.shape[1] - 1
        draft: list[mx.array] = []
        for step in range(count):
            stage, beyond = min(step, self._back), step - self._back
            if beyond > 0:
                rows = HeadRows(draft[-1], states, newest.starts + at[:, 0] + beyond, stage=stage)
            else:
                rows = HeadRows(known, states, newest.starts, stage=stage)
            states = self._slots.read(rows, limit + max(0, beyond))
            own = states if beyond > 0 else mx.take_along_axis(states, at[:, :, None], axis=1)
            draft.append(self._choose(context, self._slots.logits(own, stage), draft))
            if context.enough:
                break
            if beyond >= 0:
                states = own
            else:
                states = states if self._slots.chained else given
                known = shifted(known, at, draft[-1])
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
                positions = context.lengths[:, None] + len(draft)
                context.sure.add(metal_kernels.leads(logits, positions, context.sampling.rows, own))
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
