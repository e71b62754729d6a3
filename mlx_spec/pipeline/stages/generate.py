"""Generate: a completion for each record, as ``mlx-spec batch`` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from mlx_spec.batching.messages import check_messages
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.stage import Done, Generate, Request, Stage, text_of
from mlx_spec.pipeline.templates import PromptTemplate
from mlx_spec.results import GenerationResult

_MESSAGES = "messages"
_FIELDS = ("prompt", "text", _MESSAGES)


@dataclass(frozen=True)
class GenerateText(Stage):
    """The prompt comes from a template, a field, or a field of chat messages.

    Attributes:
        prompt_template: Jinja over the record's fields, or ``@file``.
        prompt_field: a field that is the prompt; by default ``prompt``, else ``text``, else
            ``messages``, whichever a record has.
        messages_field: a field that holds a list of chat messages.
        output_field: where the completion goes.
    """

    kind: ClassVar[str] = "generate"
    about: ClassVar[str] = "a completion of each record's prompt"
    prompt_template: str | None = None
    prompt_field: str | None = None
    messages_field: str | None = None
    output_field: str = "output"

    def __post_init__(self) -> None:
        given = [
            f"--{name.replace('_', '-')}"
            for name in ("prompt_template", "prompt_field", "messages_field")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise InvalidRequest(f"[generate] {' and '.join(given)} given; one says the prompt")
        if not self.output_field or self.output_field.startswith("_"):
            raise InvalidRequest(
                f"[generate] output field {self.output_field!r}, expected a name without a "
                "leading underscore"
            )
        if self._template is not None:  # its text counts for a resume, not its file
            object.__setattr__(self, "prompt_template", self._template.source)

    @cached_property
    def _template(self) -> PromptTemplate | None:
        if self.prompt_template is None:
            return None
        return PromptTemplate(self.prompt_template, "prompt-template")

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        """The prompt."""
        if self.messages_field is not None:
            return Generate(messages_of(fields, self.messages_field))
        if self._template is not None:
            return Generate(self._template.render(fields))
        if self.prompt_field is not None:
            return Generate(text_of(fields, self.prompt_field))
        # A table has every column in every row, empty in some.
        name = next((name for name in _FIELDS if fields.get(name) is not None), _FIELDS[0])
        if name == _MESSAGES:
            return Generate(messages_of(fields, name))
        return Generate(text_of(fields, name))

    def complete(self, fields: Mapping[str, Any], answer: GenerationResult) -> Done:
        """The completion."""
        return Done({self.output_field: answer.text})


def messages_of(fields: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Chat messages in a field: a list, or the JSON text of one (CSV has no lists).

    Raises:
        InvalidRequest: there is no such field, or it holds something else.
    """
    value = fields.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InvalidRequest(f"field {name!r} is text but not JSON ({error})") from error
    if not isinstance(value, list) or not value:
        raise InvalidRequest(
            f"field {name!r} holds {str(value)[:40]!r}, expected chat messages: "
            '[{"role": ..., "content": ...}, ...]'
        )
    return check_messages(value, f"field {name!r}")
