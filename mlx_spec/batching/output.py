"""From a request's record to what its caller holds: chunks while it runs, the result at its end."""

from __future__ import annotations

from mlx_spec.decoding.flight import StepOutput
from mlx_spec.results import FinishReason, GenerationChunk, GenerationResult, TokenLogprob
from mlx_spec.sequence import Sequence


def make_chunks(output: StepOutput) -> list[GenerationChunk]:
    """One chunk for each token that a step has emitted; read before the next step emits."""
    request = output.sequence
    before = len(request.tokens) - len(output.tokens)
    chunks = []
    for place, token in enumerate(output.tokens):
        last = place == len(output.tokens) - 1
        chunks.append(
            GenerationChunk(
                index=request.index,
                text=request.texts[before + place],
                token=token,
                from_draft=place < output.accepted,
                # A request that fails has no last chunk.
                finish_reason=request.finish_reason if last and request.error is None else None,
                prompt_tokens=len(request.prompt),
                generation_tokens=before + place + 1,
                logprob=request.logprobs[before + place] if request.logprobs else None,
                drafter=output.source if place < output.accepted else None,
            )
        )
    return chunks


def make_result(request: Sequence, count: int | None = None) -> GenerationResult:
    """The request as its caller has seen it.

    Args:
        request: one that has ended, or is given up.
        count: tokens that have reached the caller; None for all.
    """
    count = len(request.tokens) if count is None else count
    return GenerationResult(
        text="".join(request.texts[:count]),
        token_ids=request.tokens[:count],
        finish_reason=_reason(request, count),
        prompt_tokens=len(request.prompt),
        generation_tokens=count,
        ttft=_since(request, request.first_token),
        duration=_since(request, request.last_token),
        drafted=request.drafted,
        accepted=request.accepted,
        drafters=dict(request.drafters),
        verify_steps=request.steps,
        queue_time=_since(request, request.admitted),
        reused_tokens=request.reused,
        seed=request.seed if request.sampling.seed is None else request.sampling.seed,
        error=request.error,
        logprobs=request.logprobs[:count] if request.sampling.wants_logprobs else None,
        prompt_logprobs=_of_prompt(request),
    )


def _of_prompt(request: Sequence) -> list[TokenLogprob | None] | None:
    """One a token that was read; the first one's would be given nothing."""
    return [None, *request.prompt_logprobs] if request.sampling.prompt_logprobs else None


def _reason(request: Sequence, count: int) -> FinishReason:
    """Who has not seen the last token has not seen it end."""
    if request.error is not None:
        return "error"
    seen = count == len(request.tokens)
    return request.finish_reason or "cancelled" if seen else "cancelled"


def _since(request: Sequence, moment: float | None) -> float:
    return 0.0 if moment is None else moment - request.arrival
