"""Generate: a completion for each record, as ``mlx-spec batch`` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.record_sampling import check_names, sampling_of
from mlx_spec.pipeline.stage import Done, Generate, Request, Stage, option, text_of
from mlx_spec.pipeline.templates import PromptTemplate
from mlx_spec.results import GenerationResult

if TYPE_CHECKING:
    from mlx_spec.batching.prompts import Prompt

_MESSAGES = "messages"
_FIELDS = ("prompt", "text", _MESSAGES)


@dataclass(frozen=True)
class GenerateText(Stage):
    """The prompt comes from a template, a field, or a field of chat messages."""

    kind: ClassVar[str] = "generate"
    about: ClassVar[str] = "complete each record's prompt; results are written as they come"
    prompt_template: str | None = option(None, "Jinja over the record's fields; @FILE reads it.")
    prompt_field: str | None = option(
        None,
        "Field that is the prompt.  [default: prompt, else text, else the chat in messages]",
    )
    messages_field: str | None = option(None, "Field of chat messages.")
    output_field: str = option("output", "Field for the completion.")
    sampling_fields: tuple[str, ...] = option(
        (),
        "Fields that are a record's own options, e.g. max_tokens,temperature,stop.",
        metavar="NAMES",
        words=True,
    )

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
        check_names(self.sampling_fields)
        if self._template is not None:  # its text counts for a resume, not its file
            object.__setattr__(self, "prompt_template", self._template.source)

    @cached_property
    def _template(self) -> PromptTemplate | None:
        if self.prompt_template is None:
            return None
        return PromptTemplate(self.prompt_template, "prompt-template")

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        return Generate(self._prompt(fields), sampling_of(fields, self.sampling_fields))

    def _prompt(self, fields: Mapping[str, Any]) -> Prompt:
        if self.messages_field is not None:
            return messages_of(fields, self.messages_field)
        if self._template is not None:
            return self._template.render(fields)
        if self.prompt_field is not None:
            return text_of(fields, self.prompt_field)
        # A table has every column in every row, empty in some.
        filled = (name for name in _FIELDS if fields.get(name) not in (None, ""))
        there = (name for name in _FIELDS if name in fields)
        name = next(filled, next(there, None))
        if name is None:
            names = ", ".join(map(str, fields)) or "none"
            wanted = "'prompt', 'text' or 'messages'"
            raise InvalidRequest(f"no field {wanted}; the record's fields are: {names}")
        return messages_of(fields, name) if name == _MESSAGES else text_of(fields, name)

    def complete(self, fields: Mapping[str, Any], answer: GenerationResult) -> Done:
        asked = {f"{self.output_field}_{name}": some for name, some in answer.scores.items()}
        return Done({self.output_field: answer.text, **asked})


def messages_of(fields: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Chat messages in a field: a list, or the JSON text of one (CSV has no lists).

    Raises:
        InvalidRequest: there is no such field, or it holds something else.
    """
    # Only here: a listing of the stages' options must not import mlx.
    from mlx_spec.batching.messages import check_messages

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
