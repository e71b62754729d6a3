"""Which of a target's tokens a draft has, and under which ids.

A draft can never change an output: what it proposes is only taken where the target would have
chosen the same. So a pair need not agree in every token: special and added ones may differ, ids
may be others, and vocabularies larger or smaller. What matters is how many of the target's tokens
the draft can guess. Where that is too few, tokens can still be translated through text
(``decoding.drafters.text_model``), if both tokenizers give back what they were given.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_spec.errors import TokenizerMismatch
from mlx_spec.token_bytes import same_tokens

LEAST_SHARE = 0.5
NO_TOKEN = -1
_SAMPLE = "one, two  and 12.5"


@dataclass(frozen=True)
class Pairing:
    """How two token maps agree.

    Attributes:
        shared: tokens of the target that the draft has.
        tokens: tokens of the target.
        moved: how many of the shared ones have another id in the draft.
        examples: a few of the tokens that the draft lacks, or has elsewhere, in words.
        to_draft: [ids of the target] int32, the draft's id of each token, ``NO_TOKEN`` where it
            has none; None where ids can be taken as they are.
        through_text: so few are common that tokens are translated through text.
    """

    shared: int
    tokens: int
    moved: int = 0
    examples: str = ""
    to_draft: np.ndarray[Any, Any] | None = field(default=None, compare=False)
    through_text: bool = False

    @property
    def share(self) -> float:
        """The part of the target's tokens that the draft can guess, 0 to 1."""
        return self.shared / self.tokens if self.tokens else 1.0

    def __str__(self) -> str:
        if self.through_text:
            return (
                f"the draft has {self.shared:,} of the target's {self.tokens:,} tokens "
                f"({100 * self.share:.2f}%), so that guesses are translated through text"
            )
        elsewhere = f", {self.moved:,} of them under other ids" if self.moved else ""
        if self.shared == self.tokens:
            return f"the draft has all of the target's tokens{elsewhere}"
        return (
            f"the draft has {self.shared:,} of the target's {self.tokens:,} tokens "
            f"({100 * self.share:.2f}%{elsewhere}; not: {self.examples})"
        )


def check_pair(tokenizer: Any, draft_tokenizer: Any) -> Pairing:
    """See how many of a target's tokens a draft has, and under which ids.

    The maps from token to id are compared, by what tokens stand for, and not their sizes:
    embeddings are often padded, and equal sizes prove nothing. Which of the tokens ends a text may
    differ (a base model drafting for its chat version): only the target's end tokens count. Two
    tokenizers are compared once.

    Raises:
        TokenizerMismatch: so few are common that guesses would be in vain; with the share.
    """
    if draft_tokenizer is None:  # a head, which has its target's tokens
        count = len(tokenizer.get_vocab())
        return Pairing(count, count)
    found = _compared.get(tokenizer, draft_tokenizer)
    if found is None:
        found = _compare(tokenizer.get_vocab(), draft_tokenizer.get_vocab())
        if isinstance(found, Pairing) and found.through_text:
            found = _through_text(found, tokenizer, draft_tokenizer)
        _compared.put(tokenizer, draft_tokenizer, found)
    if isinstance(found, str):
        raise TokenizerMismatch(found)
    return found


def _through_text(found: Pairing, tokenizer: Any, draft_tokenizer: Any) -> Pairing | str:
    """The same where both give back a text that they are given; else why they are no pair."""
    for role, own in (("target", tokenizer), ("draft", draft_tokenizer)):
        try:
            back = own.decode(own.encode(_SAMPLE, add_special_tokens=False))
            problem = "" if back == _SAMPLE else f"gives {back!r} for {_SAMPLE!r}"
        except Exception as error:  # whatever a tokenizer raises
            problem = f"fails ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        if problem:
            return (
                f"[check_pair] the draft has only {found.shared:,} of the target's "
                f"{found.tokens:,} tokens ({100 * found.share:.2f}%, at least "
                f"{100 * LEAST_SHARE:.0f}% are needed): {found.examples}; and they cannot be "
                f"translated through text, since the {role}'s tokenizer {problem}"
            )
    return found


def _compare(target: Mapping[str, int], draft: Mapping[str, int]) -> Pairing:
    """How the maps agree."""
    if target == draft:
        return Pairing(len(target), len(target))
    common = same_tokens(target, draft)
    by_id = {number: token for token, number in draft.items()}
    missing = sorted((token for token in target if token not in common), key=target.__getitem__)
    moved = [token for token in common if common[token] != target[token]]
    examples = ", ".join(_difference(token, target, by_id) for token in missing[:3])
    if len(common) < LEAST_SHARE * len(target):
        return Pairing(len(common), len(target), len(moved), examples, through_text=True)
    elsewhere = bool(moved) or any(target[token] in by_id for token in missing)
    ids = _ids(target, common) if elsewhere else None
    return Pairing(len(common), len(target), len(moved), examples, ids)


def _ids(target: Mapping[str, int], common: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """The draft's id by the target's."""
    ids = np.full(max(target.values()) + 1, NO_TOKEN, np.int32)
    for token, number in common.items():
        ids[target[token]] = number
    return ids


def _difference(token: str, target: Mapping[str, int], by_id: Mapping[int, str]) -> str:
    """How the draft lacks one token of the target, in words."""
    number = target[token]
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
