"""``ApiRecords``: requests in the words of an API, as OpenAI's batch files have them.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}

Out comes a line of its batch outputs: the answer's body under ``response``, or what was wrong
under ``error`` (and in the body, as HTTP would have it). Bodies are read and written by the
server's dialects. No FastAPI here: ``mlx-spec batch`` uses it without a server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from pydantic import ValidationError

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.failures import ERROR, FAILED
from mlx_spec.pipeline.stage import (
    Done,
    LoadedModel,
    Request,
    Respond,
    Responded,
    Stage,
    WantedTexts,
)
from mlx_spec.results import GenerationResult
from mlx_spec.server.dialects import DIALECTS
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.dialect import Dialect
from mlx_spec.server.protocol.faults import Fault, words
from mlx_spec.server.protocol.served import ServedModel

# What a body has, where a record does not say its url.
_TELLING = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/responses",
}


@dataclass(frozen=True)
class ApiRecords(Stage):
    """Requests in the words of an API.

    Attributes:
        created: what answers give as their time; 0, so that two runs write the same bytes.
        salt: makes ids of answers other than those of other runs.
        model: what answers call the model; empty: what it was loaded by.
    """

    kind: ClassVar[str] = "api"
    about: ClassVar[str] = "answer requests in the words of OpenAI's API"
    created: int = 0
    salt: str = ""
    model: str = ""

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        dialect, name = dialect_for(fields), self._name(fields)
        return Respond(partial(self._read, dialect, body_of(fields), name))

    def _read(
        self, dialect: Dialect, body: Mapping[str, Any], name: str, model: LoadedModel
    ) -> WantedTexts:
        served = ServedModel(
            name=self.model or model.name,
            tokenizer=model.tokenizer,
            context=model.context,
            created=self.created,
            defaults=replace(model.sampling, seed=None),  # a record's comes from its number
            chat=model.chat,
        )
        try:
            checked = dialect.body.model_validate(body)
        except ValidationError as error:
            raise InvalidRequest(words(error.errors(include_url=False))) from error
        asked = dialect.read(checked, served)
        asked = self.limited(replace(asked, request_id=name, created=self.created))
        return WantedTexts(
            prompts=asked.prompts,
            sampling=asked.sampling,
            write=lambda results: dialect.whole(asked, [_plain(one) for one in results], served),
            chat=asked.chat,
            n=asked.n,
            options={} if asked.prediction is None else {"prediction": asked.prediction},
        )

    def limited(self, asked: Asked) -> Asked:
        """The same within limits, which a server has; InvalidRequest where it is beyond them."""
        return asked

    def _name(self, fields: Mapping[str, Any]) -> str:
        """What the ids of an answer are made of."""
        text = f"{self.salt}\0{fields.get('custom_id')}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

    def complete(self, fields: Mapping[str, Any], answer: Responded) -> Done:
        return Done(self._line(fields, 200, dict(answer.body)), alone=True)

    def failed(self, fields: Mapping[str, Any], reason: str, *, refused: bool) -> Mapping[str, Any]:
        fault = Fault(400, "invalid_request", reason) if refused else _broken(reason)
        try:
            body = dialect_for(fields).error(fault)
        except InvalidRequest:
            body = DIALECTS[_TELLING["messages"]].error(fault)
        line = self._line(fields, fault.status, body)
        return {**line, ERROR: {"code": fault.kind, "message": reason}, FAILED: True}

    def _line(
        self, fields: Mapping[str, Any], status: int, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        name = self._name(fields)
        return {
            "id": f"batch_req_{name}",
            "custom_id": fields.get("custom_id"),
            "response": {"status_code": status, "request_id": f"req_{name}", "body": body},
            ERROR: None,
        }


def _plain(result: GenerationResult) -> GenerationResult:
    """The same without counts of what was guessed and reused, which the clock decides: two runs
    write the same bytes."""
    return replace(result, drafted=0, accepted=0, reused_tokens=0)


def _broken(reason: str) -> Fault:
    return Fault(500, "server_error", reason)


def body_of(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body of a record's request.

    Raises:
        InvalidRequest: it has none.
    """
    body = fields.get("body")
    if not isinstance(body, Mapping):
        raise InvalidRequest(f"body is {_shown(body)}, expected a JSON object")
    return body


def dialect_for(fields: Mapping[str, Any]) -> Dialect:
    """Whose words a record's request is in.

    Raises:
        InvalidRequest: nobody's here.
    """
    method, url = fields.get("method", "POST"), fields.get("url")
    if method != "POST":
        raise InvalidRequest(f"method is {_shown(method)}, expected 'POST'")
    if url is None:
        body = body_of(fields)
        url = next((place for name, place in _TELLING.items() if name in body), None)
    if not isinstance(url, str) or url not in DIALECTS:
        raise InvalidRequest(f"url is {_shown(url)}, expected one of {', '.join(DIALECTS)}")
    return DIALECTS[url]


def _shown(value: Any) -> str:
    return repr(value)[:60]
