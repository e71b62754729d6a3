"""What a request took, as APIs count it: tokens read, reused and said, and those guessed."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from mlx_spec.results import GenerationResult
from mlx_spec.server.protocol.asked import Asked


@dataclass(frozen=True)
class TokenCounts:
    """Of one request.

    Attributes:
        prompt: tokens of its prompts, each counted once.
        reused: how many of them were not read again.
        said: tokens of all its texts.
        reasoned: how many of those were reasoning.
        accepted, rejected: draft tokens.
    """

    prompt: int
    reused: int
    said: int
    reasoned: int
    accepted: int
    rejected: int

    @classmethod
    def of(cls, asked: Asked, results: Seq[GenerationResult], tokenizer: Any) -> TokenCounts:
        """Over all texts. Those of one prompt share what was read, so its first one says it."""
        heads = asked.heads(results)
        accepted = sum(result.accepted for result in results)
        return cls(
            prompt=sum(result.prompt_tokens for result in heads),
            reused=sum(result.reused_tokens for result in heads),
            said=sum(result.generation_tokens for result in results),
            reasoned=sum(_reasoned(result.token_ids, asked, tokenizer) for result in results),
            accepted=accepted,
            rejected=sum(result.drafted for result in results) - accepted,
        )

    def openai(self) -> dict[str, Any]:
        """As chat completions and completions have it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.said,
            "total_tokens": self.prompt + self.said,
            "prompt_tokens_details": {"cached_tokens": self.reused},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoned,
                "accepted_prediction_tokens": self.accepted,
                "rejected_prediction_tokens": self.rejected,
            },
        }


def _reasoned(ids: list[int], asked: Asked, tokenizer: Any) -> int:
    """Tokens between the marks of reasoning, or up to where a text was cut off in it."""
    begin = list(getattr(tokenizer, "think_start_tokens", None) or ())
    end = list(getattr(tokenizer, "think_end_tokens", None) or ())
    if not begin or not end:
        return 0
    start = 0
    if not asked.thinking:
        found = _find(ids, begin)
        if found is None:
            return 0
        start = found + len(begin)
    stop = _find(ids[start:], end)
    return len(ids) - start if stop is None else stop


def _find(ids: list[int], some: list[int]) -> int | None:
    places = range(len(ids) - len(some) + 1)
    return next((place for place in places if ids[place : place + len(some)] == some), None)
