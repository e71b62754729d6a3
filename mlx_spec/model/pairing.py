"""Whether a draft's tokens mean what the target's mean, and how many of them do.

A draft can never change an output: what it proposes is only taken where the target would have
chosen the same. So a pair need not agree in every token: special and added ones may differ, and a
vocabulary may be larger. Where ordinary tokens mean something else, the draft reads another text
than the one written, and guesses in vain.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from mlx_spec.errors import TokenizerMismatch

LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Pairing:
    """How two token maps agree.

    Attributes:
        shared: tokens of the target that the draft has under the same id.
        tokens: tokens of the target.
        examples: a few of the others, in words.
    """

    shared: int
    tokens: int
    examples: str = ""

    @property
    def share(self) -> float:
        """The part of the target's tokens that the draft can guess, 0 to 1."""
        return self.shared / self.tokens if self.tokens else 1.0

    def __str__(self) -> str:
        if self.shared == self.tokens:
            return "the draft has all of the target's tokens"
        return (
            f"the draft has {self.shared:,} of the target's {self.tokens:,} tokens "
            f"({100 * self.share:.2f}%; not: {self.examples})"
        )


def check_pair(tokenizer: Any, draft_tokenizer: Any) -> Pairing:
    """Check that a draft's tokens mean what the target's mean, and say how many do.

    The maps from token to id are compared, not their sizes: embeddings are often padded, and
    equal sizes prove nothing. Which of the tokens ends a text may differ (a base model drafting
    for its chat version): only the target's end tokens count. Two tokenizers are compared once.

    Raises:
        TokenizerMismatch: ordinary tokens differ, or most are missing; with some of them.
    """
    if draft_tokenizer is None:  # a head, which has its target's tokens
        count = len(tokenizer.get_vocab())
        return Pairing(count, count)
    found = _compared.get(tokenizer, draft_tokenizer)
    if found is None:
        found = _compare(tokenizer, draft_tokenizer)
        _compared.put(tokenizer, draft_tokenizer, found)
    if isinstance(found, str):
        raise TokenizerMismatch(found)
    return found


def _compare(tokenizer: Any, draft_tokenizer: Any) -> Pairing | str:
    """How the maps agree, or why they are no pair."""
    target, draft = tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    if target == draft:
        return Pairing(len(target), len(target))
    differing = [token for token, number in target.items() if draft.get(token) != number]
    differing.sort(key=lambda token: (target[token], token))  # mostly ordinary words first
    shared = len(target) - len(differing)
    by_id = {number: token for token, number in draft.items()}
    # What may differ: tokens that no ordinary text becomes, and ids that the draft lacks.
    apart = _special(tokenizer, target) | _special(draft_tokenizer, draft)
    free = apart | {""}
    moved = [
        token
        for token in differing
        if token not in apart and (token in draft or by_id.get(target[token], "") not in free)
    ]
    if moved:
        examples = ", ".join(_difference(token, target, draft, by_id) for token in moved[:3])
        return (
            f"[check_pair] the draft's token map differs from the target's in {len(differing)} of "
            f"{len(target)} tokens; ordinary ones mean something else ({len(moved)}): {examples}"
        )
    examples = ", ".join(_difference(token, target, draft, by_id) for token in differing[:3])
    if shared < LEAST_SHARE * len(target):
        return (
            f"[check_pair] the draft has only {shared} of the target's {len(target)} tokens, so "
            f"its guesses would be in vain: {examples}"
        )
    return Pairing(shared, len(target), examples)


def _special(tokenizer: Any, vocabulary: dict[str, int]) -> set[str]:
    """Tokens that no ordinary text becomes: special ones, and those added after the training."""
    added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    named = getattr(tokenizer, "all_special_tokens", ())
    return {token for token in (*added, *named) if token in vocabulary}


def _difference(token: str, target: dict[str, int], draft: dict[str, int], by_id: Any) -> str:
    """How one token of the target differs, in words."""
    number = target[token]
    if token in draft:
        return f"{token!r} is {number} in the target, {draft[token]} in the draft"
    if number in by_id:
        return f"{number} is {token!r} in the target, {by_id[number]!r} in the draft"
    return f"{token!r} ({number}) is not in the draft"


class _Compared:
    """What was found for pairs of tokenizers that still live."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], Pairing | str] = {}

    def get(self, first: Any, second: Any) -> Pairing | str | None:
        """What was found for this pair."""
        return self._found.get((id(first), id(second)))

    def put(self, first: Any, second: Any, found: Pairing | str) -> None:
        """Keep it until one of them goes; then its number may become another's."""
        key = (id(first), id(second))
        try:
            for tokenizer in (first, second):
                weakref.finalize(tokenizer, self._found.pop, key, None).atexit = False
        except TypeError:
            return  # an object that cannot tell when it goes
        self._found[key] = found


_compared = _Compared()
