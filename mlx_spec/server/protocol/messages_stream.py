"""The events of a streamed ``/v1/messages``: blocks that begin, grow and end, one after another."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from mlx_spec.results import GenerationChunk, GenerationResult
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.dialect import Event, drafter_of
from mlx_spec.server.protocol.ends import ended_itself
from mlx_spec.server.protocol.faults import Fault, anthropic_error, failed
from mlx_spec.server.protocol.parts import Called, Part, Reading, Said, Thought
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.protocol.usage import TokenCounts


@dataclass(frozen=True)
class MessageWords:
    """What whole answers and streams of one request say alike.

    Attributes:
        asked, served: as everywhere.
    """

    asked: Asked
    served: ServedModel

    def empty(self) -> dict[str, Any]:
        """A message that nothing stands in yet."""
        return {
            "id": f"msg_{self.asked.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self.served.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def ending(self, result: GenerationResult, called: bool, stop: str | None) -> dict[str, Any]:
        """Why it ended."""
        reason = "max_tokens"
        if ended_itself(result.finish_reason):
            reason = "tool_use" if called else "end_turn" if stop is None else "stop_sequence"
        return {
            "stop_reason": reason,
            "stop_sequence": stop if reason == "stop_sequence" else None,
        }

    def usage(self, results: Seq[GenerationResult]) -> dict[str, Any]:
        """What it took. Tokens that were not read again are counted apart here."""
        counts = TokenCounts.of(self.asked, results, self.served.tokenizer)
        return {
            "input_tokens": counts.prompt - counts.reused,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts.reused,
            "output_tokens": counts.said,
            "accepted_prediction_tokens": counts.accepted,
            "rejected_prediction_tokens": counts.rejected,
        }


class MessageStream:
    """Writes one streamed message.

    Args:
        words: of the request.
        how: how its text is parted.
        stop: the stop text that ended a result, if one did.
    """

    def __init__(
        self,
        words: MessageWords,
        how: Reading,
        stop: Callable[[GenerationResult], str | None],
    ) -> None:
        self._words, self._reader, self._stop = words, how.reader(0), stop
        self._blocks = 0  # that have begun
        self._open: type[Part] | None = None

    def start(self) -> list[Event]:
        """The message begins."""
        usage = {"input_tokens": self._words.asked.prompt_tokens, "output_tokens": 0}
        message = {**self._words.empty(), "usage": usage}
        return [_event("message_start", message=message)]

    def chunk(self, index: int, chunk: GenerationChunk) -> list[Event]:
        """What a token makes certain."""
        more = drafter_of(chunk, self._words.asked)
        return [event for part in self._reader.take(chunk) for event in self._part(part, more)]

    def end(self, results: Seq[GenerationResult]) -> list[Event]:
        """Why it ended, and what it took."""
        fault = failed(results)
        if fault is not None:
            return self.fault(fault)
        [result] = results
        ending = self._words.ending(result, bool(self._reader.calls), self._stop(result))
        usage = self._words.usage(results)
        last = _event("message_delta", delta=ending, usage=usage)
        return [*self._close(), last, _event("message_stop")]

    def fault(self, fault: Fault) -> list[Event]:
        """An error in the middle."""
        return [Event.of(anthropic_error(fault), "error")]

    def _part(self, part: Part, more: dict[str, Any]) -> list[Event]:
        events = []
        if self._open is not type(part) or (isinstance(part, Called) and part.begins):
            events += self._close()
            self._open, self._blocks = type(part), self._blocks + 1
            block = _empty(part)
            events.append(
                _event("content_block_start", index=self._blocks - 1, content_block=block)
            )
        events.append(
            _event("content_block_delta", index=self._blocks - 1, delta=_delta(part), **more)
        )
        return events

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        self._open = None
        return [_event("content_block_stop", index=self._blocks - 1)]


def _empty(part: Part) -> dict[str, Any]:
    if isinstance(part, Called):
        return {"type": "tool_use", "id": part.call.id, "name": part.call.name, "input": {}}
    if isinstance(part, Thought):
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _delta(part: Part) -> dict[str, Any]:
    if isinstance(part, Said):
        return {"type": "text_delta", "text": part.text}
    if isinstance(part, Thought):
        return {"type": "thinking_delta", "thinking": part.text}
    return {"type": "input_json_delta", "partial_json": part.call.arguments}


def _event(kind: str, **fields: Any) -> Event:
    return Event.of({"type": kind, **fields}, kind)
