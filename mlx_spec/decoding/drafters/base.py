"""What a drafter is: the seam at which any source of guesses plugs in.

The decoder holds no knowledge of any drafter; switching drafts off is ``NoDraft``, so the step
has no ``if draft``. It may propose anything: the output never depends on it, only the speed.

A new drafter derives from ``BaseDrafter`` and defines ``propose``; one that keeps something for
each row hears of every join and leave, and one that must see tokens on the host says so by
``needs_host`` (``docs/drafters.md`` has an example).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlx_spec.decoding.heard import Fed, Verified
from mlx_spec.decoding.rules import LogitsRule
from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.decoding.watching import Watcher
from mlx_spec.model.pace import Chunk
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence


class GuessNotes:
    """What is asked of one draft's guesses beside their tokens, in their order."""

    def __init__(self) -> None:
        self._parts: list[mx.array] = []

    def add(self, notes: mx.array) -> None:
        """That of the next guesses, [B, n] or [B, n, V]."""
        self._parts.append(notes)

    @property
    def enough(self) -> bool:
        """Whether no further guess is wanted."""
        return False

    def take(self) -> mx.array | None:
        """[B, K] or [B, K, V] of all; None where nothing was noted. It begins anew."""
        parts, self._parts = self._parts, []
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


@dataclass(frozen=True)
class DraftContext:
    """What is known when a draft is asked for.

    Attributes:
        sequences: the rows. What they hold on the host is all that is known only for a drafter
            that ``needs_host``; else a step may be in flight.
        tokens: [B, C] int32, known tokens of each row from position 0; past ``lengths`` garbage.
        lengths: [B] int32, known tokens; may still be computing on the device.
        shortest, longest: host bounds on ``lengths`` over all rows.
        sampling: the rows' options.
        vocabulary: size of the target's; it has no embedding for tokens past it.
        rules: what is done to the target's logits, as far as the device knows it; a drafter that
            does the same to its own agrees more often.
        known: ``lengths`` as numbers, where no step is in flight.
        begins: which rows have nothing in the target's caches yet; empty where none has.
        taken: rows whose guesses another drafter makes, so that this one's are for nothing and what
            they gain is known when the host has read the step; empty where there are none.
        drawn: where the distributions of the guesses are asked for (``Draft.probabilities``), takes
            them as they are drawn; else None.
        sure: where it is asked how sure the drafter is, takes [B, 1] float32 for each guess: how
            far it leads what else it might have guessed (``metal_kernels.leads``); else None.
    """

    sequences: Seq[Sequence]
    tokens: mx.array
    lengths: mx.array
    shortest: int
    longest: int
    sampling: SamplingBatch
    vocabulary: int
    rules: tuple[LogitsRule, ...] = ()
    known: tuple[int, ...] | None = None
    begins: tuple[bool, ...] = ()
    taken: tuple[bool, ...] = ()
    drawn: GuessNotes | None = None
    sure: GuessNotes | None = None

    @property
    def enough(self) -> bool:
        """Whether no further guess is wanted, after those that were noted: the drafter may end."""
        return self.sure is not None and self.sure.enough

    def draft(self, guesses: Seq[mx.array]) -> Draft:
        """Guesses [B, 1] each, with what they were drawn from since this was asked before."""
        drawn = None if self.drawn is None else self.drawn.take()
        return Draft(mx.concatenate(list(guesses), axis=1), probabilities=drawn)


@dataclass(frozen=True)
class FilledGuesses:
    """That the device says whose the verified guesses of a draft are (``Draft.counts``).

    Attributes:
        said: [B, K] float32, how sure the drafter is of each guess.
        guesses: that are verified in all.
    """

    said: mx.array
    guesses: int


@dataclass(frozen=True)
class Draft:
    """Guesses for the next tokens.

    Attributes:
        tokens: [B, K] int32, for positions ``lengths ..``; all of them in the target's vocabulary.
            K may be less than was asked for, and 0.
        counts: [B] int32, how many of each row's, from the first on, are guesses; the others are
            padding and count neither as accepted nor as rejected. None: all are guesses.
        lengths: the same as numbers, from a drafter that knows them on the host: then the pass is
            no wider than the longest of them, and a step for which nobody has a guess is a plain
            one.
        sources: who guessed for each row, by name, "" for nobody; None: this drafter for all.
        chances: for each row, as many numbers as its length: how likely each guess is right, if
            those before it are. None where the drafter does not know.
        probabilities: [B, K, V] float32, the distribution that each was drawn from, from a drafter
            that draws, where the context wants them; lazily. Without them a guess counts as sure
            of itself, which it must be: told by what is known, and not drawn.
        passes: guesses one after the other that each drafter computed, by name; None: as many as
            the longest of its rows has.
        filled: where ``counts`` were chosen on the device by how sure the drafter is; else None.
    """

    tokens: mx.array
    counts: mx.array | None = None
    lengths: Seq[int] | None = None
    sources: Seq[str] | None = None
    chances: Seq[Seq[float]] | None = None
    probabilities: mx.array | None = None
    passes: Mapping[str, int] | None = None
    filled: FilledGuesses | None = None


@dataclass(frozen=True)
class Trial:
    """How guesses, or passes, are timed: of no row, without caches, written nowhere.

    Attributes:
        describe: what computes one guess for so many rows, or a pass over so many tokens, of which
            ``width`` are a row's; anything that ``mx.eval`` takes.
        models: what runs; a table of times is theirs, by the shapes of what they hold.
        part: what of it runs, in words; empty for all.
        first: tokens a row that the first pass of a draft reads.
        key_share: what one key costs that attention reads, of a pass of one token.
    """

    describe: Callable[..., Any]
    models: tuple[Any, ...]
    part: str = ""
    first: int = 1
    key_share: float = 0.0


class Drafter(Protocol):
    """A source of draft tokens for a batch of rows.

    Attributes:
        name: what it goes by in figures; one of ``config.DRAFTERS``, set by who makes it.
    """

    name: str

    @property
    def needs_host(self) -> bool:
        """Whether it looks at rows on the host for the next step, which is then taken in turn
        (``drivers``); asked before each step."""
        ...

    @property
    def reads_slots(self) -> bool:
        """Whether it reads what the target's slots hold of a row, which must be all known tokens
        but the last before it guesses."""
        ...

    @property
    def max_draft_tokens(self) -> int | None:
        """Most tokens it can propose at once; None for any number."""
        ...

    @property
    def runners(self) -> tuple[ModelRunner, ...]:
        """The models that it runs, none or some."""
        ...

    @property
    def watchers(self) -> tuple[Watcher, ...]:
        """Who reads more of a step than its tokens for it (``watching``)."""
        ...

    @property
    def prefix_bytes(self) -> int:
        """Bytes that it keeps of repeated beginnings."""
        ...

    @property
    def spare(self) -> int:
        """Positions beyond a row's known tokens that its caches may need, beside the draft's."""
        ...

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Rows join at the end.

        Args:
            sequences: the newcomers; what they are known to hold now is what counts.
            longest: positions that any row may reach before the next proposal.
        """
        ...

    def keep(self, order: Seq[int]) -> None:
        """Rows change: new row i was row ``order[i]``; rows not named have left."""
        ...

    def feed(self, flying: int) -> Chunk | None:
        """Describe how some of what it has not seen yet is read; None where that is nothing.

        Asked before a step that drafts and before :meth:`snapshot`; the chunk is launched before
        that step. It bounds what one step adds for rows whose texts are long, so that the other
        rows' streams do not freeze meanwhile.

        Args:
            flying: 1 where a step is in flight, else 0: tokens that rows have at least gained
                beyond what the host knows, and those that it does not cover at most.
        """
        ...

    def covers(self) -> list[bool] | None:
        """Whether it can draft for each row now, the others' proposals are worthless; None: all."""
        ...

    def skip(self, most: int = 1) -> None:
        """A step has no guess of this drafter: each row gains one token, or, where others guess, up
        to ``most``. Then no step is in flight, and what it was is known before the next."""
        ...

    def propose(self, context: DraftContext, count: int) -> Draft:
        """Guesses for positions ``lengths ..``, ``count`` of them, at least 1, lazily."""
        ...

    def verified(self, step: Verified) -> None:
        """What the target said of what was proposed, or of nothing; of every step, lazily.

        Each step is proposed for or skipped, and then verified; :meth:`restore` undoes both.
        """
        ...

    def fed(self, chunk: Fed) -> None:
        """The target reads prompts, of rows that have not joined yet; where it was tapped."""
        ...

    def settle(self) -> None:
        """Describe now what is still to be written to the target's own slots: rows get saved."""
        ...

    def landing(self) -> None:
        """The step in flight is read before another is described: a moment later the host knows
        more of rows than it did when that one was proposed for."""
        ...

    def trial(self) -> Trial | None:
        """How to time its guesses, so that steps need not; None where they cost nothing."""
        ...

    def snapshot(self) -> Any:
        """The present state by reference, for :meth:`restore`."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Forget steps skipped or drafted for since ``snapshot``: they were never launched."""
        ...


class BaseDrafter:
    """A drafter that keeps nothing and runs no model: all that is left is ``propose``."""

    name: str = "own"
    needs_host: bool = False
    reads_slots: bool = False
    max_draft_tokens: int | None = None
    runners: tuple[ModelRunner, ...] = ()
    watchers: tuple[Watcher, ...] = ()
    prefix_bytes: int = 0
    spare: int = 0

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Nothing is kept for a row."""

    def keep(self, order: Seq[int]) -> None:
        """Nothing is kept for a row."""

    def feed(self, flying: int) -> Chunk | None:
        """Nothing is to be read."""
        return None

    def covers(self) -> list[bool] | None:
        """All rows."""
        return None

    def skip(self, most: int = 1) -> None:
        """Nothing to note."""

    def propose(self, context: DraftContext, count: int) -> Draft:
        """What each drafter defines."""
        raise NotImplementedError(f"[{type(self).__name__}.propose] a drafter defines this")

    def verified(self, step: Verified) -> None:
        """Nothing is learnt."""

    def fed(self, chunk: Fed) -> None:
        """Nothing is learnt."""

    def settle(self) -> None:
        """Nothing is owed."""

    def landing(self) -> None:
        """Nothing is late."""

    def trial(self) -> Trial | None:
        """Nothing is computed that would take time, or steps say it."""
        return None

    def snapshot(self) -> Any:
        """Nothing changes."""

    def restore(self, snapshot: Any) -> None:
        """Nothing changed."""
