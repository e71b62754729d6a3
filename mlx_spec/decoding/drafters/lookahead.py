"""``LookaheadDrafter``: n-grams of what the target said, and nearly said, wherever it was asked.

Verifying a draft makes the target answer at every position of it, and only the answers up to the
first wrong guess become text. The others are not lost: each answer, and its runner-up, is an n-gram
of the two tokens before it. A draft is a chain of the likeliest ones (no tree)::

    known      a b |          answers to   b  x  y  z
    draft           x y z     the target   x  c  d  e      x stands, then c: the text is a b x c
    n-grams         ab>x  bx>c  xy>d  yz>e                 xy>d and yz>e were never said

Answers and runners-up travel with the step and are read in its one wait, so collecting costs one
more maximum over the vocabulary. As with n-grams of texts, a row that gained nothing by it only
goes on collecting, and steps are built ahead meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import mlx.core as mx

from mlx_spec.decoding.drafters.guesses import Guess
from mlx_spec.decoding.drafters.on_host import HostDrafter
from mlx_spec.decoding.drafters.suffixes.confirmation import Confirmation, worth_waiting
from mlx_spec.decoding.drafters.suffixes.pool import GramPool
from mlx_spec.decoding.drafters.suffixes.trust import Trust
from mlx_spec.decoding.outputs import StepGains
from mlx_spec.decoding.watching import Chosen, Watcher
from mlx_spec.sequence import Sequence

NOBODY = -1  # stands before a text's first token


@dataclass(frozen=True)
class Answered:
    """What the target said to one row in one step.

    Attributes:
        draft: the guesses that counted.
        answers: after the known tokens, and after each guess.
        seconds: what it nearly said instead.
        gained: so many of the answers are tokens of the row now.
    """

    draft: Seq[int]
    answers: Seq[int]
    seconds: Seq[int]
    gained: int


class _Collected:
    """What was collected of one request."""

    def __init__(self) -> None:
        self.pool = GramPool()
        self.confirmation = Confirmation()


class _Answers(Watcher):
    """Hands the target's answers to whoever collects them."""

    def __init__(self, drafter: LookaheadDrafter) -> None:
        self._drafter = ref(drafter)  # which holds this

    def watch(self, chosen: Chosen) -> list[mx.array]:
        """[B, 2 K + 1] int32: the draft, and the best token beside each that was chosen."""
        logits = chosen.logits
        said = mx.arange(logits.shape[-1]) == chosen.samples[..., None]
        second = mx.argmax(mx.where(said, -mx.inf, logits), axis=-1).astype(mx.int32)
        return [mx.concatenate([chosen.draft, second], axis=1)]

    def take(self, gains: StepGains, values: list[Any]) -> None:
        """Let the rows that gained something collect."""
        for row, result, output, read in zip(
            gains.rows, gains.results, gains.outputs, values[0].tolist(), strict=True
        ):
            drafter = self._drafter()
            if drafter is not None and output is not None and output.tokens:
                _, drafted, *answers = result
                width = len(answers) - 1
                draft, seconds = read[:width][:drafted], read[width:]
                drafter.collect(row, Answered(draft, answers, seconds, len(output.tokens)))


class LookaheadDrafter(HostDrafter):
    """Follows n-grams collected from the target's answers at verified positions."""

    FLOOR = 0.3  # chance of a whole draft under which it is not continued

    def __init__(self) -> None:
        self.watchers = (_Answers(self),)
        # By orders: one token before, two tokens before.
        self._trust = Trust((2,), (0.3, 0.6))
        self._rows: WeakKeyDictionary[Sequence, _Collected] = WeakKeyDictionary()
        self._present: list[Sequence] = []

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Newcomers have said nothing; who comes back goes on."""
        super().join(sequences, longest)
        for sequence in sequences:
            self._rows.setdefault(sequence, _Collected())
        self._present += sequences

    def keep(self, order: Seq[int]) -> None:
        """What was collected is a request's own, wherever its row stands."""
        self._present = [self._present[row] for row in order]

    def _worthwhile(self) -> bool:
        return worth_waiting([self._rows[row].confirmation for row in self._present])

    def _guess(self, sequence: Sequence, most: int) -> list[Guess]:
        """The likeliest chain from where a row stands, if what it collected is confirmed."""
        made, product = list[Guess](), 1.0
        if not self._verified(sequence):
            return made
        pool, (before, last) = self._rows[sequence].pool, _end(sequence, sequence.length)
        while len(made) < most and (found := pool.next(before, last)):
            chance = self._trust.chance(found.order, found.share)
            product *= chance
            if product < self.FLOOR:
                break
            made.append((found.token, chance))
            before, last = last, found.token
        return made

    def collect(self, sequence: Sequence, answered: Answered) -> None:
        """Learn from a step that a row took."""
        row = self._rows.get(sequence)
        if row is None:
            return
        gained = answered.gained
        before, last = _end(sequence, sequence.length - gained)
        for place, read in enumerate([*answered.draft, NOBODY]):
            answer = answered.answers[place]
            if place < gained:
                self._judge(row, before, last, answer)
            row.pool.add(before, last, answer, answered.seconds[place])
            before, last = last, read

    def _judge(self, row: _Collected, before: int, last: int, said: int) -> None:
        """Hold what would have been guessed against what was said."""
        found = row.pool.next(before, last)
        if found is None:
            row.confirmation.judge(None)
            return
        right = found.token == said
        self._trust.learn(found.order, found.share, right)
        # What is too unlikely to be guessed is no wrong guess.
        likely = self._trust.chance(found.order, found.share) >= self.FLOOR
        row.confirmation.judge(right if likely else None)

    def _verified(self, sequence: Sequence) -> bool:
        return self._rows[sequence].confirmation.verified


def _end(sequence: Sequence, length: int) -> tuple[int, int]:
    """The last two of so many known tokens."""
    if length == 1:
        return NOBODY, sequence.prompt[0]
    before, last = sequence.known(length - 2, length)
    return before, last
