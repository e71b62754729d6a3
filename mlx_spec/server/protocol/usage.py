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
        accepted, rejected: draft tokens.
    """

    prompt: int
    reused: int
    said: int
    accepted: int
    rejected: int

    @classmethod
    def of(cls, asked: Asked, results: Seq[GenerationResult]) -> TokenCounts:
        """Over all texts. Those of one prompt share what was read, so its first one says it."""
        heads = asked.heads(results)
        accepted = sum(result.accepted for result in results)
        return cls(
            prompt=sum(result.prompt_tokens for result in heads),
            reused=sum(result.reused_tokens for result in heads),
            said=sum(result.generation_tokens for result in results),
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
                "accepted_prediction_tokens": self.accepted,
                "rejected_prediction_tokens": self.rejected,
            },
        }
