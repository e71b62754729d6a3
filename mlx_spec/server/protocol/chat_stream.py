"""The stream of ``/v1/chat/completions``: one reader a text, one chunk for what each token adds."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.results import FinishReason, GenerationChunk, GenerationResult
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.dialect import Event, drafter_of
from mlx_spec.server.protocol.ends import answer_finish, said_logprob
from mlx_spec.server.protocol.faults import Fault, failed, openai_error
from mlx_spec.server.protocol.likelihoods import LogprobWriter
from mlx_spec.server.protocol.parts import Called, Part, Reading, Said, Thought
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.protocol.usage import TokenCounts

DONE = Event("[DONE]")


class OpenAIStream:
    """What streams of chat completions and completions share: frames, usage, faults.

    Args:
        asked, served: as everywhere.
        kind: the ``object`` of each chunk.
        name: its id.
    """

    def __init__(self, asked: Asked, served: ServedModel, kind: str, name: str) -> None:
        self.asked, self.served, self._kind, self._name = asked, served, kind, name

    def frame(self, choices: list[dict[str, Any]], **more: Any) -> Event:
        """A chunk with these choices."""
        frame = {
            "id": self._name,
            "object": self._kind,
            "created": self.asked.created,
            "model": self.served.name,
            "choices": choices,
        }
        if self.asked.include_usage:
            frame["usage"] = None
        return Event.of({**frame, **more})

    def end(self, results: Seq[GenerationResult]) -> list[Event]:
        """The usage, if it is asked for."""
        fault = failed(results)
        if fault is not None:
            return self.fault(fault)
        usage = TokenCounts.of(self.asked, results, self.served.tokenizer).openai()
        return [*([self.frame([], usage=usage)] if self.asked.include_usage else []), DONE]

    def fault(self, fault: Fault) -> list[Event]:
        """An error in the middle."""
        return [Event.of(openai_error(fault)), DONE]


class ChatStream(OpenAIStream):
    """Writes one streamed chat.

    Args:
        asked, served: as everywhere.
        how: how texts are parted.
    """

    def __init__(self, asked: Asked, served: ServedModel, how: Reading) -> None:
        super().__init__(asked, served, "chat.completion.chunk", f"chatcmpl-{asked.request_id}")
        self._readers = [how.reader(index) for index in range(asked.sequences)]
        self._calls = [0] * asked.sequences
        self._spelled = LogprobWriter(served.tokenizer)

    def start(self) -> list[Event]:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [self.frame([_choice(index, delta)]) for index in range(self.asked.sequences)]

    def chunk(self, index: int, chunk: GenerationChunk) -> list[Event]:
        """What a token makes certain, its log-probability, and how the text ended."""
        reader, reason = self._readers[index], chunk.finish_reason
        deltas = [self._delta(index, part) for part in reader.take(chunk)]
        logprob = said_logprob(chunk, self.served.tokenizer)
        if logprob is not None and not deltas:
            deltas = [{"content": ""}]
        choices = [_choice(index, delta) for delta in deltas]
        if logprob is not None:
            content = [self._spelled.chat(logprob)]
            choices[0]["logprobs"] = {"content": content, "refusal": None}
        events = [self.frame([choice], **drafter_of(chunk, self.asked)) for choice in choices]
        if reason is not None:
            events.append(self.frame([self._ended(index, reason)]))
        return events

    def _ended(self, index: int, reason: FinishReason) -> dict[str, Any]:
        called = bool(self._readers[index].calls)
        return {**_choice(index, {}), "finish_reason": answer_finish(reason, called)}

    def _delta(self, index: int, part: Part) -> dict[str, Any]:
        if isinstance(part, Said):
            return {"content": part.text}
        if isinstance(part, Thought):
            return {"reasoning_content": part.text}
        return {"tool_calls": [self._call(index, part)]}

    def _call(self, index: int, part: Called) -> dict[str, Any]:
        self._calls[index] += part.begins
        number, call = self._calls[index] - 1, part.call
        if not part.begins:
            return {"index": number, "function": {"arguments": call.arguments}}
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": number, "id": call.id, "type": "function", "function": function}


def _choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
