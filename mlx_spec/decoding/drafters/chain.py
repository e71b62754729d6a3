"""``ChainDrafter``: several drafters, of which each row takes in each step what promises most.

Those that look up (``free``) are asked first; what they find is known on the host, so the step is
then taken in turn. Of those that compute one is in use; it is asked if rows are left that it is
worth asking for, drafts for all rows and is overruled where something was found::

    row               0          1          2          3
    n-gram found      a b c d    -          e f        -
    the draft model   (. . .)    x y z      (. . .)    x y z     not run if no row lacks a guess
    verified          a b c d    x y z      e f        x y z

What a row gains by another's guess is not in the draft model's caches. ``DraftContext.taken`` and
``skip(most)`` say so, and the model counts what it lacks when the host knows (``riding``). Where
nobody looks up anything, steps are built ahead as if the costly one were alone.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from typing import Any, cast

import mlx.core as mx

from mlx_spec.control.filling import Filling
from mlx_spec.control.offers import NOBODY, FixedSources, Offer, Settled, SourceChoice
from mlx_spec.decoding.drafters.base import (
    BaseDrafter,
    Draft,
    DraftContext,
    Drafter,
    FilledGuesses,
    GuessNotes,
)
from mlx_spec.decoding.filling import give
from mlx_spec.decoding.heard import Fed, Verified
from mlx_spec.decoding.sampler import one_hot
from mlx_spec.decoding.watching import Watcher
from mlx_spec.model.pace import Chunk
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence


class ChainDrafter(BaseDrafter):
    """Asks several drafters.

    Args:
        free: those that look their guesses up on the host, the surest first.
        costly: those that compute them.

    Attributes:
        choice: says which of them are asked, and what is taken; all that is found unless another
            is put here.
    """

    def __init__(self, free: Seq[Drafter] = (), costly: Seq[Drafter] = ()) -> None:
        self.free, self.costly = tuple(free), tuple(costly)
        self.members = (*self.free, *self.costly)
        self.name = "+".join(member.name for member in self.members)
        self.runners: tuple[ModelRunner, ...] = sum((each.runners for each in self.members), ())
        self.watchers: tuple[Watcher, ...] = sum((each.watchers for each in self.members), ())
        limits = [each.max_draft_tokens for each in self.members]
        known = [limit for limit in limits if limit is not None]
        self.max_draft_tokens = max(known) if len(known) == len(limits) else None
        names = [each.name for each in self.costly]
        self.choice: SourceChoice = FixedSources(self.max_draft_tokens or 2**31, names)

    @property
    def asks(self) -> bool:
        """Whether somebody who looks up has something to say of the next step."""
        return any(each.needs_host for each in self.free)

    @property
    def needs_host(self) -> bool:  # type: ignore[override]
        """While somebody looks up, and where another is to compute from now on."""
        choice, using = self.choice, self._using
        return (
            (choice.free and self.asks)
            or (using is not None and using.needs_host)
            or choice.turning
            or choice.picks
        )

    @property
    def reads_slots(self) -> bool:  # type: ignore[override]
        """Whether any of them does."""
        return any(each.reads_slots for each in self.members)

    @property
    def _using(self) -> Drafter | None:
        """The costly drafter in use."""
        return next((each for each in self.costly if each.name == self.choice.costly), None)

    @property
    def prefix_bytes(self) -> int:  # type: ignore[override]
        """Bytes of repeated beginnings kept."""
        return sum(each.prefix_bytes for each in self.members)

    @property
    def spare(self) -> int:  # type: ignore[override]
        """Positions beyond a row's end that are written before its draft."""
        return max(each.spare for each in self.members)

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """All hear of it, as of whatever becomes of rows."""
        for each in self.members:
            each.join(sequences, longest)

    def keep(self, order: Seq[int]) -> None:
        for each in self.members:
            each.keep(order)

    def feed(self, flying: int) -> Chunk | None:
        """Read on for the costly one in use, while it drafts."""
        using = self._using
        return using.feed(flying) if using is not None and self.choice.drafts else None

    def covers(self) -> list[bool] | None:
        """All rows, while somebody looks up; else those of the costly one."""
        using = self._using
        if using is None or (self.choice.free and self.asks):
            return None
        return using.covers()

    def skip(self, most: int = 1) -> None:
        """Nobody drafts."""
        for each in self.costly:
            each.skip(most)
        if not self.choice.free:  # else they were not asked, and go on looking
            for each in self.free:
                each.skip(most)

    def propose(self, context: DraftContext, count: int) -> Draft:
        """What each row takes of what is found and computed."""
        found = self._found(context, count)
        rows, using = context.sequences, self._using
        covered = self._covered(using, len(rows))
        offers = [Offer(name, draft.lengths or (), draft.chances) for name, draft in found]
        settled = self.choice.settle(rows, offers, covered)
        drafts = [draft for _, draft in found]
        if using is not None and settled.filling is not None:
            return self._filled(using, context, settled, settled.filling)
        if using is None or not settled.costly:
            made = None
            for each in self.costly:
                each.skip(1 + max(settled.lengths))
        else:
            hearing = Hearing(partial(self.choice.enough, rows)) if settled.reads else None
            made = self._computed(using, replace(context, sure=hearing), settled, count)
            if hearing is not None and hearing.said:  # some drafters do not say
                settled = replace(settled, lengths=self.choice.pick(rows, hearing.said))
        draft = self._joined(settled, [offer.source for offer in offers], drafts, made)
        if made is None or made.probabilities is None:
            return draft
        taken = [pick != NOBODY for pick in settled.picks]
        q = _spread(draft.tokens, made.probabilities, taken, context.vocabulary)
        return replace(draft, probabilities=q)

    def _filled(
        self, using: Drafter, context: DraftContext, settled: Settled, filling: Filling
    ) -> Draft:
        """The costly drafter's guesses, of which the device says whose are verified; where that
        one does not say how sure it is, those that were settled on."""
        notes, deep = GuessNotes(), replace(settled, lengths=list(filling.most))
        made = self._computed(using, replace(context, sure=notes), deep, max(filling.most))
        said, width = notes.take(), made.tokens.shape[1]
        if said is None or made.counts is not None or made.lengths is not None:
            return self._joined(settled, (), (), made)
        filling = filling.within(width)
        draft = self._joined(replace(deep, lengths=list(filling.most)), (), (), made)
        return replace(
            draft,
            counts=give(said, filling),
            passes={using.name: width},
            filled=FilledGuesses(said, filling.guesses),
        )

    def _found(self, context: DraftContext, count: int) -> list[tuple[str, Draft]]:
        """What those who look up have to offer, by name."""
        found = []
        for each in self.free:
            if not self.choice.free:
                each.skip()
                continue
            # Who did not ask for the host is not heard: this step may be one that is built on.
            heard = context.known is not None and each.needs_host
            draft = _asked(each, context, count)
            if heard and draft.lengths is not None and max(draft.lengths):
                found.append((each.name, draft))
        return found

    def _covered(self, using: Drafter | None, rows: int) -> list[bool]:
        """Rows for which the costly drafter can guess."""
        if using is None or not self.choice.drafts:
            return [False] * rows
        covered = using.covers()
        return [True] * rows if covered is None else covered

    def _computed(
        self, using: Drafter, context: DraftContext, settled: Settled, count: int
    ) -> Draft:
        """The costly drafter's guesses, and how many of them count."""
        taken = tuple(pick != NOBODY for pick in settled.picks)
        asked = [n for n, other in zip(settled.lengths, taken, strict=True) if not other]
        for each in self.costly:
            if each is not using:
                each.skip(1 + max(settled.lengths))
        if any(taken):
            context = replace(context, taken=taken)
        return _asked(using, context, min(count, max(asked)))

    def _joined(
        self, settled: Settled, names: Seq[str], drafts: Seq[Draft], made: Draft | None
    ) -> Draft:
        """One draft of all."""
        picks, lengths = settled.picks, list(settled.lengths)
        costly = self.choice.costly
        if made is not None:
            known = made.lengths or [made.tokens.shape[1]] * len(lengths)
            for row, pick in enumerate(picks):
                if pick == NOBODY:
                    lengths[row] = min(lengths[row], known[row])
        width, tokens = max(lengths), None if made is None else made.tokens
        for number, draft in enumerate(drafts):
            own = [pick == number for pick in picks]
            if any(own):
                tokens = _merged(own, draft.tokens, tokens, width)
        sources = [
            "" if not n else costly if pick == NOBODY else names[pick]
            for n, pick in zip(lengths, picks, strict=True)
        ]
        passes = None
        if made is not None and settled.reads:
            passes = {
                by: max(own for own, who in zip(lengths, sources, strict=True) if who == by)
                for by in set(sources) - {""}
            }
            passes[costly] = made.tokens.shape[1]
        if tokens is None or not width:
            none = mx.zeros((len(picks), 0), mx.int32)
            return Draft(none, lengths=lengths, sources=sources, passes=passes)
        counts = None if made is None else made.counts
        if counts is not None:
            taken = mx.array([pick != NOBODY for pick in picks])
            counts = mx.where(taken, width, counts)
        return Draft(_wide(tokens, width), counts, lengths, sources, passes=passes)

    def verified(self, step: Verified) -> None:
        for each in self.members:
            each.verified(step)

    def fed(self, chunk: Fed) -> None:
        for each in self.members:
            each.fed(chunk)

    def settle(self) -> None:
        for each in self.members:
            each.settle()

    def landing(self) -> None:
        for each in self.members:
            each.landing()

    def snapshot(self) -> Any:
        """Those of all."""
        return [each.snapshot() for each in self.members]

    def restore(self, snapshot: Any) -> None:
        for each, own in zip(self.members, snapshot, strict=True):
            each.restore(own)


class Hearing(GuessNotes):
    """How sure a drafter is of its guesses, read after each of them.

    Args:
        enough: whether, of that by row, no further guess is wanted.

    Attributes:
        said: by row.
    """

    def __init__(self, enough: Callable[[list[list[float]]], bool]) -> None:
        super().__init__()
        self._judge = enough
        self.said: list[list[float]] = []

    def add(self, notes: mx.array) -> None:
        """Read what is noted; the guess itself is computed by then."""
        more = cast("list[list[float]]", notes.tolist())
        before = self.said or [[] for _ in more]
        self.said = [old + new for old, new in zip(before, more, strict=True)]

    @property
    def enough(self) -> bool:
        """By what was heard."""
        return self._judge(self.said)


def _asked(drafter: Drafter, context: DraftContext, count: int) -> Draft:
    """Its guesses, no more than it can make: others of the chain may go further."""
    most = drafter.max_draft_tokens
    return drafter.propose(context, count if most is None else min(count, most))


def _merged(own: list[bool], tokens: mx.array, others: mx.array | None, width: int) -> mx.array:
    """[B, width]: of some rows these tokens, of the others those."""
    if others is None or all(own):
        return _wide(tokens, width)
    return mx.where(mx.array(own)[:, None], _wide(tokens, width), _wide(others, width))


def _wide(tokens: mx.array, width: int) -> mx.array:
    """[B, width] of [B, K], cut or padded with what does not count."""
    missing = width - tokens.shape[1]
    if missing > 0:
        return mx.pad(tokens, [(0, 0), (0, missing)])
    return tokens[:, :width] if missing else tokens


def _spread(
    tokens: mx.array, probabilities: mx.array, taken: list[bool], vocabulary: int
) -> mx.array:
    """[B, K, V] that all guesses were drawn from: what was found is sure of itself."""
    rows, width, known = len(taken), tokens.shape[1], probabilities[..., :vocabulary]
    short, small = max(0, width - known.shape[1]), vocabulary - known.shape[2]
    known = mx.pad(known[:, :width], [(0, 0), (0, short), (0, small)])
    if not any(taken):
        return known
    return mx.where(mx.array(taken).reshape(rows, 1, 1), one_hot(tokens, vocabulary), known)
