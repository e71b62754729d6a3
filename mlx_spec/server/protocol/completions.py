"""OpenAI's ``/v1/completions``: texts and token ids as they are, for the model to go on with.

``echo`` repeats the prompt before the text, with ``logprobs`` how likely its tokens were too, and
with ``max_tokens: 0`` nothing else: what evaluation harnesses ask for.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from mlx_spec.batching.prompts import encode
from mlx_spec.config import SamplingParams
from mlx_spec.errors import InvalidRequest
from mlx_spec.results import FinishReason, GenerationChunk, GenerationResult, TokenLogprob
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.chat_stream import OpenAIStream
from mlx_spec.server.protocol.dialect import Event, StreamWriter, drafter_of
from mlx_spec.server.protocol.ends import said_logprob, said_logprobs
from mlx_spec.server.protocol.faults import Fault, openai_error
from mlx_spec.server.protocol.fields import (
    OpenAIFields,
    by_format,
    predicted,
    sampling_of,
    structure_of,
    texts_of,
)
from mlx_spec.server.protocol.likelihoods import of_completion
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.protocol.usage import TokenCounts


class CompletionBody(OpenAIFields):
    """The body of ``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several, in the form of several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def only_echo(self) -> bool:
        """Whether no text is wanted beside the prompt's."""
        return bool(self.echo) and self.max_tokens == 0


class Completions:
    """The dialect."""

    name = "completions"
    body: type[BaseModel] = CompletionBody

    def read(self, body: CompletionBody, served: ServedModel) -> Asked:
        """What a body asks for."""
        prompts = body.prompts
        if not prompts:
            raise InvalidRequest("prompt is empty")
        sampling = self._sampling(body, served)
        return Asked(
            prompts=tuple(
                encode(
                    served.tokenizer, prompt, f"prompt.{place}" if len(prompts) > 1 else "prompt"
                )
                for place, prompt in enumerate(prompts)
            ),
            sampling=sampling,
            n=texts_of(body, sampling),
            stream=bool(body.stream),
            include_usage=body.wants_usage,
            prediction=predicted(body.prediction),
            priority=body.priority or 0,
            show_drafts=body.wants_drafts,
            request_id=uuid.uuid4().hex,
            created=int(time.time()),
            body=body,
        )

    def _sampling(self, body: CompletionBody, served: ServedModel) -> SamplingParams:
        structure = structure_of(body, response_format=by_format(body.response_format))
        own: dict[str, Any] = {"structure": structure}
        wanted = body.logprobs
        if wanted is not None and wanted is not False:
            likeliest = body.top_logprobs or 0 if wanted is True else wanted
            own |= {"logprobs": True, "top_logprobs": max(likeliest, 0)}
            if body.echo and body.stream:
                raise InvalidRequest("echo with logprobs is not streamed: the prompt's come last")
            own["prompt_logprobs"] = bool(body.echo)
        if body.only_echo:
            if body.stream:
                raise InvalidRequest("max_tokens=0 has nothing to stream")
            own["max_tokens"] = 1  # which is not told
        return sampling_of(body, served, **own)

    def whole(
        self, asked: Asked, results: Seq[GenerationResult], served: ServedModel
    ) -> dict[str, Any]:
        """The answer at once."""
        body: CompletionBody = asked.body
        counts = TokenCounts.of(asked, results, served.tokenizer)
        return {
            "id": f"cmpl-{asked.request_id}",
            "object": "text_completion",
            "created": asked.created,
            "model": served.name,
            "choices": [
                self._choice(asked, index, result, served) for index, result in enumerate(results)
            ],
            "usage": (replace(counts, said=0) if body.only_echo else counts).openai(),
        }

    def _choice(
        self, asked: Asked, index: int, result: GenerationResult, served: ServedModel
    ) -> dict[str, Any]:
        body: CompletionBody = asked.body
        text, reason = ("", "length") if body.only_echo else (result.text, result.finish_reason)
        if body.echo:
            text = echoed(asked, index, served) + text
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(asked, index, result, served),
            "finish_reason": reason,
        }

    def _logprobs(
        self, asked: Asked, index: int, result: GenerationResult, served: ServedModel
    ) -> dict[str, Any] | None:
        said = said_logprobs(result, served.tokenizer)
        if said is None:
            return None
        body: CompletionBody = asked.body
        of_prompt = (result.prompt_logprobs or []) if body.echo else []
        found: list[TokenLogprob | None] = [*of_prompt, *([] if body.only_echo else said)]
        first = asked.prompts[index // asked.n][:1]
        return of_completion(found, 0, str(served.tokenizer.decode(list(first))))

    def writer(self, asked: Asked, served: ServedModel) -> StreamWriter:
        """The answer as it comes."""
        return CompletionStream(asked, served)

    def error(self, fault: Fault) -> dict[str, Any]:
        """As OpenAI's APIs write it."""
        return openai_error(fault)


def _name(place: int, count: int) -> str:
    return "prompt" if count == 1 else f"prompt.{place}"


def echoed(asked: Asked, index: int, served: ServedModel) -> str:
    """The prompt of a sequence, as it was written, or as its ids read."""
    body: CompletionBody = asked.body
    prompt = body.prompts[index // asked.n]
    return prompt if isinstance(prompt, str) else str(served.tokenizer.decode(prompt))


class CompletionStream(OpenAIStream):
    """Writes one streamed completion.

    Args:
        asked, served: as everywhere.
    """

    def __init__(self, asked: Asked, served: ServedModel) -> None:
        super().__init__(asked, served, "text_completion", f"cmpl-{asked.request_id}")
        self._offsets = [0] * asked.sequences

    def start(self) -> list[Event]:
        """The prompt, where it is to be repeated."""
        if not self.asked.body.echo:
            return []
        texts = [echoed(self.asked, n, self.served) for n in range(self.asked.sequences)]
        return [self.frame([_choice(index, text)]) for index, text in enumerate(texts)]

    def chunk(self, index: int, chunk: GenerationChunk) -> list[Event]:
        """What a token makes certain."""
        one, reason = said_logprob(chunk, self.served.tokenizer), chunk.finish_reason
        if not chunk.text and one is None and reason is None:
            return []
        choice = _choice(index, chunk.text, reason)
        if one is not None:
            choice["logprobs"] = of_completion([one], self._offsets[index], "")
            self._offsets[index] += len(one.text)
        return [self.frame([choice], **drafter_of(chunk, self.asked))]


def _choice(index: int, text: str, reason: FinishReason | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


completions = Completions()
