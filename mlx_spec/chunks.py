"""What generation hands back while it runs: one chunk a token, and how likely a token was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was: by the target's logits after biases, penalties and masks, before
    temperature and filters.

    Attributes:
        token: the token id.
        logprob: its log-probability, <= 0.
        text: it alone, as text; empty without a tokenizer.
        top: the likeliest tokens there, best first, as many as ``top_logprobs`` asks for.
    """

    token: int
    logprob: float
    text: str = ""
    top: tuple[TokenLogprob, ...] = ()

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        own = {"token": self.token, "text": self.text, "logprob": self.logprob}
        return own | ({"top_logprobs": [one.fields() for one in self.top]} if self.top else {})


@dataclass(frozen=True)
class GenerationChunk:
    """One emitted token of one request.

    Attributes:
        index: the request's place in the list of prompts (0 for a single prompt).
        text: new text, possibly empty while a character or a stop text is incomplete.
        token: the token id.
        from_draft: whether the drafter proposed it (the target would have chosen it anyway).
        finish_reason: set on the request's last chunk, else None; a request that is cancelled or
            ends with an error has no last chunk.
        prompt_tokens: tokens of the prompt.
        generation_tokens: tokens emitted so far, this one included.
        logprob: how likely it was; None unless asked for (``SamplingParams.logprobs``).
        drafter: which drafter proposed it, by name, one of several where they are joined; None for
            the target's own.
    """

    index: int
    text: str
    token: int
    from_draft: bool
    finish_reason: FinishReason | None
    prompt_tokens: int
    generation_tokens: int
    logprob: TokenLogprob | None = None
    drafter: str | None = None
