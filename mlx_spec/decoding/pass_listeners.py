"""Who hears of the passes over prompts that a ``Feeder`` describes, and what they want of them.

A listener may describe arrays of a pass (log-probabilities of a prompt): they are computed with it,
and handed over once that is done. One that wants a row's passes all has it read from its first
token on, whatever the caches of beginnings have of it::

    host      pass described: heard(pass) | launched: described          | done: taken
    device                                |== pass, arrays of listeners =|
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import mlx.core as mx

from mlx_spec.decoding.heard import Fed
from mlx_spec.model.rows import Rows
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class PromptPass:
    """A pass over prompts, described and not computed.

    Attributes:
        ends: whose the rows are, and where each ends.
        begin: where all begin.
        rows: what is read.
        logits: [b, N, V]; nobody computes what nobody asks for.
        hidden: [b, N, D], where the model was tapped.
    """

    ends: Mapping[Sequence, int]
    begin: int
    rows: Rows
    logits: mx.array
    hidden: mx.array | None


class PassListener:
    """Hears of passes over prompts; the base of all, which wants nothing of them."""

    def wants(self, sequence: Sequence) -> bool:
        """Whether a row is to be read from its first token on."""
        return False

    def begin(self, sequence: Sequence) -> None:
        """A row is read from its first token on."""

    def heard(self, read: PromptPass) -> None:
        """A pass was described."""

    def drop(self, sequences: Collection[Sequence]) -> None:
        """Rows leave: what was described for them is nobody's."""

    @property
    def described(self) -> list[mx.array]:
        """What was described of passes that are not launched."""
        return []

    def launched(self) -> Callable[[], None]:
        """All of that is on its way; to be told when it is there."""
        return lambda: None


class PassListeners(PassListener):
    """Several as one."""

    def __init__(self, each: Seq[PassListener] = ()) -> None:
        self._each = tuple(each)

    def wants(self, sequence: Sequence) -> bool:
        return any(one.wants(sequence) for one in self._each)

    def begin(self, sequence: Sequence) -> None:
        for one in self._each:
            one.begin(sequence)

    def heard(self, read: PromptPass) -> None:
        for one in self._each:
            one.heard(read)

    def drop(self, sequences: Collection[Sequence]) -> None:
        for one in self._each:
            one.drop(sequences)

    @property
    def described(self) -> list[mx.array]:
        return [array for one in self._each for array in one.described]

    def launched(self) -> Callable[[], None]:
        told = [one.launched() for one in self._each]

        def done() -> None:
            for one in told:
                one()

        return done

    def settle(self) -> None:
        """The passes are computed: so is what was described of them, now."""
        described = self.described
        if described:
            mx.eval(described)
            self.launched()()


class StatesListener(PassListener):
    """Tells a drafter of the hidden states of passes.

    Args:
        heard: the drafter's.
    """

    def __init__(self, heard: Callable[[Fed], None]) -> None:
        self._heard = heard

    def heard(self, read: PromptPass) -> None:
        if read.hidden is not None:
            self._heard(Fed.of(read.ends, read.begin, read.rows, read.hidden))
