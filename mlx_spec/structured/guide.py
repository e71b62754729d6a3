"""``Guide``: how far one text has come in its grammar, and what may follow.

A guide knows emitted tokens only. Guesses are tried on the way to a mask and taken back at once, so
that nothing is left to undo when they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any


def first_words(error: str) -> str:
    """llguidance's reason on one line, without what is meant for its authors."""
    return " ".join(error.partition("<state>")[0].replace("<non-verbose/>", "").split())[:300]


class Guide:
    """The state of one request's constraint; it moves with the request, not with a slot.

    Args:
        start: a matcher at the beginning, which stays there.
        vocabulary: the tokenizer that it was made for.

    Attributes:
        matcher: stands behind all tokens followed so far.
        width: tokens that a mask speaks of.
        waited: steps in which there was no time for its mask, since the last one that was made.
    """

    def __init__(self, start: Any, vocabulary: Any) -> None:
        self._start, self._vocabulary = start, vocabulary
        self.width = int(vocabulary.vocab_size)
        self.matcher = start.deep_copy()
        self.waited = 0
        self._ends = frozenset(vocabulary.eos_tokens)
        self._followed: list[int] = []

    def follow(self, tokens: Seq[int]) -> None:
        """Stand behind ``tokens``, all that were emitted; those that are new are taken."""
        new = list(tokens[len(self._followed) :])
        if new:
            self.matcher.consume_tokens(new)
            self._followed += new

    def again(self) -> None:
        """Go there anew: a guess has led the matcher to where it gives up for good."""
        self.matcher = self._start.deep_copy()
        self.matcher.consume_tokens(self._followed)

    def ends(self, token: int) -> bool:
        """Whether a token ends the text."""
        return token in self._ends

    @property
    def trouble(self) -> str | None:
        """Why no token can follow; None while one can."""
        return self.trouble_after(0) if self.matcher.is_error() else None

    def trouble_after(self, guesses: int) -> str:
        """The same in words, where so many tokens that were not emitted have led there."""
        reason = first_words(self.matcher.get_error())
        if reason.startswith("NoExtension"):
            reason = "it leads nowhere that the tokenizer could write"
        return (
            f"[structure] the constraint cannot be followed after "
            f"{len(self._followed) + guesses} tokens: " + (reason or "it forbids every token")
        )

    def allowed(self, tokens: Seq[int]) -> int:
        """How many of ``tokens``, guessed to come next, the constraint allows."""
        known = next((n for n, one in enumerate(tokens) if not 0 <= one < self.width), len(tokens))
        count: int = self.matcher.validate_tokens(list(tokens[:known]))
        return count

    def forced(self, most: int) -> list[int]:
        """The tokens that must follow, ``most`` at most, the end of the text among them."""
        tokens: list[int] = self.matcher.compute_ff_tokens()[:most]
        if len(tokens) < most:
            taken = self.matcher.try_consume_tokens(tokens) if tokens else 0
            if taken == len(tokens) and self.matcher.is_stopped() and not self.matcher.is_error():
                tokens = [*tokens, int(self._vocabulary.eos_token)]
            if taken:
                self.matcher.rollback(taken)
        return tokens
