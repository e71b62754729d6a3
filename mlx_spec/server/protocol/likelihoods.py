"""Log-probabilities as OpenAI's APIs write them: of chat's tokens, and of completions'."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.batching.pieces import pieces_of
from mlx_spec.results import TokenLogprob

IMPOSSIBLE = -9999.0  # OpenAI's word for what has no probability: JSON has no infinity


def written(one: TokenLogprob) -> float:
    """A log-probability as JSON can have it: a constraint makes most tokens impossible."""
    return max(one.logprob, IMPOSSIBLE)


class LogprobWriter:
    """Writes those of one model's tokens.

    Args:
        tokenizer: of the model, which knows the bytes that a token stands for.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._pieces = pieces_of(tokenizer, backend) if backend else None

    def chat(self, one: TokenLogprob) -> dict[str, Any]:
        """One token of ``logprobs.content``."""
        return {**self._entry(one), "top_logprobs": [self._entry(other) for other in one.top]}

    def _entry(self, one: TokenLogprob) -> dict[str, Any]:
        return {"token": one.text, "logprob": written(one), "bytes": self._bytes(one)}

    def _bytes(self, one: TokenLogprob) -> list[int]:
        """A token may be a part of a character, which its text cannot say."""
        try:
            piece = self._pieces[one.token] if self._pieces is not None else one.text
        except Exception:  # whatever a tokenizer raises costs bytes only
            piece = one.text
        return list(piece if isinstance(piece, bytes) else piece.encode())


def of_completion(found: Seq[TokenLogprob | None], start: int, first: str) -> dict[str, Any]:
    """The ``logprobs`` of a completion's choice.

    Args:
        found: of each token; None for a prompt's first one.
        start: characters of the choice's text before the first token.
        first: the text of a token that has no log-probability, the prompt's first.
    """
    texts = [first if one is None else one.text for one in found]
    offsets, at = [], start
    for text in texts:
        offsets.append(at)
        at += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [None if one is None else written(one) for one in found],
        "top_logprobs": [
            None if one is None else {other.text: written(other) for other in (*one.top, one)}
            for one in found
        ],
        "text_offset": offsets,
    }
