"""How a text ended, as APIs call it, and which of its tokens are its text."""

from __future__ import annotations

from typing import Any

from mlx_spec.results import FinishReason, GenerationChunk, GenerationResult, TokenLogprob


def ended_itself(reason: FinishReason | None) -> bool:
    """Whether the model ended its text, or a stop text did."""
    return reason == "stop"


def answer_finish(reason: FinishReason | None, called: bool) -> str:
    """OpenAI's finish reason. A text that was cut off is ``length``, whatever it has called."""
    return "tool_calls" if called and ended_itself(reason) else str(reason)


def is_end(token: int, reason: FinishReason | None, tokenizer: Any) -> bool:
    """Whether a text's last token ends it and is none of its text."""
    return ended_itself(reason) and token in tokenizer.eos_token_ids


def said_logprobs(result: GenerationResult, tokenizer: Any) -> list[TokenLogprob] | None:
    """Those of the tokens that are text; None where nobody asked."""
    found = result.logprobs
    if found and is_end(found[-1].token, result.finish_reason, tokenizer):
        return found[:-1]
    return found


def said_logprob(chunk: GenerationChunk, tokenizer: Any) -> TokenLogprob | None:
    """That of a chunk's token, if it is text."""
    ends = is_end(chunk.token, chunk.finish_reason, tokenizer)
    return None if ends else chunk.logprob


def matched_stop(result: GenerationResult, stops: tuple[str, ...], tokenizer: Any) -> str | None:
    """The stop text that ended a text; None where another thing did."""
    if not stops or not result.token_ids or not ended_itself(result.finish_reason):
        return None
    if is_end(result.token_ids[-1], result.finish_reason, tokenizer):
        return None
    text = str(tokenizer.decode(result.token_ids))
    # Decoded at once, a text may have lost the blank that it begins with.
    begin = max(0, len(result.text) - 1)
    found = [(place, -len(stop), stop) for stop in stops if (place := text.find(stop, begin)) >= 0]
    return min(found)[2] if found else None
