"""The typed events of a streamed ``/v1/responses``: items that begin, grow and end."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

from mlx_spec.results import GenerationChunk, GenerationResult
from mlx_spec.server.protocol.dialect import Event, drafter_of
from mlx_spec.server.protocol.ends import ended_itself, said_logprob
from mlx_spec.server.protocol.faults import Fault, failed
from mlx_spec.server.protocol.likelihoods import LogprobWriter
from mlx_spec.server.protocol.parts import Called, Part, Reading, Said, Thought
from mlx_spec.server.protocol.responses_words import (
    COMPLETED,
    IN_PROGRESS,
    INCOMPLETE,
    ResponseWords,
    content_part,
)


class ResponseStream:
    """Writes one streamed response.

    Args:
        words: of the request.
        how: how its text is parted.
    """

    def __init__(self, words: ResponseWords, how: Reading) -> None:
        self._words, self._reader = words, how.reader(0)
        self._spelled = LogprobWriter(words.served.tokenizer)
        self._number = 0  # of the next event
        self._output: list[dict[str, Any]] = []  # items that have ended
        self._open: Part | None = None  # all that the item in the making holds
        self._logprobs: list[dict[str, Any]] = []  # of it
        self._pending: list[dict[str, Any]] = []  # of tokens whose text has not come yet

    def start(self) -> list[Event]:
        """The response begins."""
        response = self._words.response(IN_PROGRESS, [])
        kinds = ("response.created", "response.in_progress")
        return [self._event(kind, response=response) for kind in kinds]

    def chunk(self, index: int, chunk: GenerationChunk) -> list[Event]:
        """What a token makes certain."""
        logprob = said_logprob(chunk, self._words.served.tokenizer)
        if logprob is not None:
            self._pending.append(self._spelled.chat(logprob))
        more = drafter_of(chunk, self._words.asked)
        return [event for part in self._reader.take(chunk) for event in self._part(part, more)]

    def end(self, results: Seq[GenerationResult]) -> list[Event]:
        """The whole response once more."""
        fault = failed(results)
        if fault is not None:
            return self.fault(fault)
        complete = ended_itself(results[0].finish_reason)
        events = self._close(COMPLETED if complete else INCOMPLETE)
        response = self._words.ended(results, self._output)
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def fault(self, fault: Fault) -> list[Event]:
        """An error in the middle."""
        response = self._words.failed(fault, self._output)
        error = {"code": fault.kind, "message": fault.message, "param": None}
        return [
            self._event("error", **error),
            self._event("response.failed", response=response),
        ]

    def _part(self, part: Part, more: dict[str, Any]) -> list[Event]:
        events = []
        if type(self._open) is not type(part) or (isinstance(part, Called) and part.begins):
            events = [*self._close(COMPLETED), *self._begin(part)]
        assert self._open is not None
        self._open = _joined(self._open, part)
        where = self._where(isinstance(part, Called))
        if isinstance(part, Called):
            kind, text = "response.function_call_arguments.delta", part.call.arguments
            return [*events, self._event(kind, **where, delta=text, **more)]
        if isinstance(part, Thought):
            kind = "response.reasoning_text.delta"
            return [*events, self._event(kind, **where, delta=part.text, **more)]
        new, self._pending = self._pending, []
        self._logprobs += new
        kind = "response.output_text.delta"
        return [*events, self._event(kind, **where, delta=part.text, logprobs=new, **more)]

    def _begin(self, part: Part) -> list[Event]:
        """An item, and what its text goes to."""
        self._open, self._logprobs = _empty(part), []
        item = self._words.item(len(self._output), self._open, IN_PROGRESS)
        place = len(self._output)
        events = [self._event("response.output_item.added", output_index=place, item=item)]
        if not isinstance(part, Called):
            empty = content_part(self._open)
            where = self._where(False)
            events.append(self._event("response.content_part.added", **where, part=empty))
        return events

    def _close(self, status: str) -> list[Event]:
        """All of the item in the making, once more."""
        part, place = self._open, len(self._output)
        if part is None:
            return []
        item = self._words.item(place, part, status, self._logprobs)
        events, where = [], self._where(isinstance(part, Called))
        if isinstance(part, Called):
            kind, call = "response.function_call_arguments.done", part.call
            events.append(self._event(kind, **where, name=call.name, arguments=call.arguments))
        else:
            thought = isinstance(part, Thought)
            kind = "response.reasoning_text.done" if thought else "response.output_text.done"
            found = {} if thought else {"logprobs": self._logprobs}
            events.append(self._event(kind, **where, text=part.text, **found))
            whole = content_part(part, self._logprobs)
            events.append(self._event("response.content_part.done", **where, part=whole))
        self._open = None
        self._output.append(item)
        events.append(self._event("response.output_item.done", output_index=place, item=item))
        return events

    def _where(self, called: bool) -> dict[str, Any]:
        assert self._open is not None
        place = len(self._output)
        where = {"item_id": self._words.item(place, self._open)["id"], "output_index": place}
        return where if called else {**where, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._number = self._number, self._number + 1
        return Event.of({"type": kind, "sequence_number": number, **fields}, kind)


def _empty(part: Part) -> Part:
    if isinstance(part, Called):
        return Called(replace(part.call, arguments=""))
    return Thought("") if isinstance(part, Thought) else Said("")


def _joined(one: Part, more: Part) -> Part:
    if isinstance(one, Called) and isinstance(more, Called):
        arguments = one.call.arguments + more.call.arguments
        return Called(replace(one.call, arguments=arguments))
    assert not isinstance(one, Called)
    assert not isinstance(more, Called)
    return type(one)(one.text + more.text)
