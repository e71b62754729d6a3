"""``Dialect``: the seam at which an API plugs in. A new one is a file with an object of this form.

The way of a request: ``parse`` its bytes, ``read`` what they ask for, and then ``whole``, or a
``writer`` where it streams. ``fault_of`` makes of any exception what ``error`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from mlx_spec.results import GenerationChunk, GenerationResult
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.faults import Fault
from mlx_spec.server.protocol.served import ServedModel


@dataclass(frozen=True)
class Event:
    """One server-sent event.

    Attributes:
        data: one line of text.
        event: its type; None where the API has none.
    """

    data: str
    event: str | None = None

    @classmethod
    def of(cls, value: Any, event: str | None = None) -> Event:
        """Of a JSON value."""
        return cls(json.dumps(value, ensure_ascii=False), event)


def drafter_of(chunk: GenerationChunk, asked: Asked) -> dict[str, Any]:
    """Who guessed a token, where that is asked for."""
    return {"mlx_spec": {"drafter": chunk.drafter}} if asked.show_drafts else {}


class StreamWriter(Protocol):
    """The events of one streamed request, in their order: start, chunks, then end or fault."""

    def start(self) -> list[Event]:
        """Before the first token."""
        ...

    def chunk(self, index: int, chunk: GenerationChunk) -> list[Event]:
        """One token more of sequence ``index`` of the request, perhaps with nothing to say yet."""
        ...

    def end(self, results: Seq[GenerationResult]) -> list[Event]:
        """All have ended; results in the order of the sequences. One that failed is told here."""
        ...

    def fault(self, fault: Fault) -> list[Event]:
        """An error in the middle; nothing follows."""
        ...


class Dialect(Protocol):
    """An API's requests and answers.

    Attributes:
        name: what it goes by in counters and logs.
        body: the form of its requests, for checks and for the OpenAPI schema.
    """

    @property
    def name(self) -> str: ...

    @property
    def body(self) -> type[BaseModel]: ...

    def read(self, body: Any, served: ServedModel) -> Asked:
        """What a parsed body asks for; applies the chat template.

        Raises:
            InvalidRequest: it cannot be served, in words for the caller.
        """
        ...

    def whole(
        self, asked: Asked, results: Seq[GenerationResult], served: ServedModel
    ) -> dict[str, Any]:
        """The answer at once, of results that all ended well (``faults.failed``)."""
        ...

    def writer(self, asked: Asked, served: ServedModel) -> StreamWriter:
        """The answer as it comes."""
        ...

    def error(self, fault: Fault) -> dict[str, Any]:
        """A refusal or a failure, as this API writes it."""
        ...
