"""An API in one file: ``POST /say {"begin": "def ", "tokens": 8}`` answers ``{"said": "..."}``.

With ``"stream": true`` the text comes as events. ``DIALECTS["/say"] = Say()`` serves it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from mlx_spec.results import GenerationChunk, GenerationResult
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.dialect import Event
from mlx_spec.server.protocol.faults import Fault
from mlx_spec.server.protocol.served import ServedModel


class SayBody(BaseModel):
    """What is asked."""

    begin: str
    tokens: int = 16
    stream: bool = False


class Say:
    """The dialect. Options that it does not speak of are as the server was started."""

    name = "say"
    body = SayBody

    def read(self, body: SayBody, served: ServedModel) -> Asked:
        sampling = replace(served.defaults, max_tokens=body.tokens)
        return Asked(prompts=(body.begin,), sampling=sampling, stream=body.stream)

    def whole(
        self, asked: Asked, results: Seq[GenerationResult], served: ServedModel
    ) -> dict[str, Any]:
        return {"said": results[0].text}

    def writer(self, asked: Asked, served: ServedModel) -> SayStream:
        return SayStream()

    def error(self, fault: Fault) -> dict[str, Any]:
        return {"cannot": fault.message}


class SayStream:
    """Pieces of text, and a last event with the reason of the end."""

    def start(self) -> list[Event]:
        return []

    def chunk(self, index: int, chunk: GenerationChunk) -> list[Event]:
        return [Event.of({"piece": chunk.text})] if chunk.text else []

    def end(self, results: Seq[GenerationResult]) -> list[Event]:
        return [Event.of({"end": results[0].finish_reason})]

    def fault(self, fault: Fault) -> list[Event]:
        return [Event.of({"cannot": fault.message})]
