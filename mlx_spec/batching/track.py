"""One request on its way out: its text so far, its times, and the chunks it becomes."""

from __future__ import annotations

from typing import Any

from mlx_spec.batching.detokenizers import make_detokenizer
from mlx_spec.batching.scheduler import Request
from mlx_spec.batching.text import TextStream
from mlx_spec.decoding.flight import StepOutput
from mlx_spec.results import FinishReason, GenerationChunk, GenerationResult
from mlx_spec.sequence import Sequence


class Track:
    """A request from its submission to its result.

    Args:
        sequence: its tokens.
        request: its place in the scheduler.
        tokenizer: None for tokens without text.

    Attributes:
        submitted, admitted, first, last: times of the engine's clock, in seconds; ``admitted``,
            ``first`` and ``last`` (token) are None until they happen.
    """

    def __init__(self, sequence: Sequence, request: Request, tokenizer: Any) -> None:
        self.sequence = sequence
        self.request = request
        self.submitted = request.arrival
        self.admitted: float | None = None
        self.first: float | None = None
        self.last: float | None = None
        self._tokenizer = tokenizer
        self._opened: TextStream | None = None
        self._given: list[GenerationChunk] = []

    @property
    def done(self) -> bool:
        """Whether no chunk follows."""
        return self.sequence.finish_reason is not None

    @property
    def given(self) -> int:
        """Tokens that have reached the caller."""
        return len(self._given)

    def emit(self, output: StepOutput, now: float) -> list[GenerationChunk]:
        """Chunks of one step's run of tokens, cut off where a stop text ends it.

        What the tokenizer raises ends this request, at the token before, and nothing else.
        """
        sequence = self.sequence
        if not output.tokens:
            return []
        self.first = now if self.first is None else self.first
        self.last = now
        before = len(sequence.tokens) - len(output.tokens)
        chunks = []
        for place, token in enumerate(output.tokens):
            count = before + place + 1
            try:
                text = self._add(token, count)
            except Exception as error:  # foreign code
                sequence.fail(f"[TextStream] the text of token {token}: {error!r}", count - 1)
                break
            reason = sequence.finish_reason if count == len(sequence.tokens) else None
            chunks.append(self._chunk(text, token, count, place < output.accepted, reason))
            if reason:
                break
        return chunks

    def _add(self, token: int, count: int) -> str:
        """The text that the token makes certain; it is the ``count``-th of the sequence."""
        sequence = self.sequence
        stream = self._text
        # A stop token ends the text and is no part of it.
        text = "" if token in sequence.stop_ids else stream.add(token)
        if stream.stopped:
            sequence.cut(count)
        if sequence.finish_reason and count == len(sequence.tokens):
            text += stream.finish()
        return text

    @property
    def _text(self) -> TextStream:
        """Opened with the first token, where what it raises is this request's alone."""
        if self._opened is None:
            detokenizer = make_detokenizer(self._tokenizer, self.sequence.prompt)
            self._opened = TextStream(detokenizer, self.sequence.sampling.stop_texts)
        return self._opened

    def _chunk(
        self, text: str, token: int, count: int, from_draft: bool, reason: FinishReason | None
    ) -> GenerationChunk:
        return GenerationChunk(
            index=self.sequence.index,
            text=text,
            token=token,
            from_draft=from_draft,
            finish_reason=reason,
            prompt_tokens=len(self.sequence.prompt),
            generation_tokens=count,
        )

    def give(self, chunk: GenerationChunk) -> None:
        """Note that a chunk has reached the caller: only those count in the result."""
        self._given.append(chunk)

    def result(self) -> GenerationResult:
        """The request as the caller has seen it; one that did not end counts as cancelled."""
        sequence = self.sequence
        ended = self._given[-1].finish_reason if self._given else None
        if sequence.error is not None:
            ended = "error"
        return GenerationResult(
            text="".join(chunk.text for chunk in self._given),
            token_ids=[chunk.token for chunk in self._given],
            finish_reason=ended or "cancelled",
            prompt_tokens=len(sequence.prompt),
            generation_tokens=len(self._given),
            ttft=self._since(self.first),
            duration=self._since(self.last),
            drafted=sequence.drafted,
            accepted=sequence.accepted,
            verify_steps=sequence.steps,
            queue_time=self._since(self.admitted),
            reused_tokens=sequence.reused,
            seed=sequence.seed if sequence.sampling.seed is None else sequence.sampling.seed,
            error=sequence.error,
        )

    def _since(self, moment: float | None) -> float:
        return 0.0 if moment is None else moment - self.submitted
