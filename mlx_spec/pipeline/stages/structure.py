"""Structure: from a text to an instruction/response record, or to what a schema asks for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from mlx_spec.config import Structure
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags.structure import text_or_file
from mlx_spec.pipeline.record_sampling import structure_of
from mlx_spec.pipeline.stage import Done, Generate, Request, Stage, option, text_of
from mlx_spec.pipeline.templates import PromptTemplate
from mlx_spec.results import GenerationResult
from mlx_spec.structured.vocabulary import available

MODES = ("instruction", "both")
PROMPTS = {
    # Examples, since small models echo an order to write an instruction: see docs/stages.md.
    "instruction": """\
Write the question that each text answers.

Text: Paris has been the capital of France since the tenth century.
Question: Since when has Paris been the capital of France?

Text: Put the eggs into boiling water for six minutes, then into cold water.
Question: How do I boil eggs?

Text: {{ text }}
Question:""",
    "both": """\
Text: {{ text }}

Turn the text into one instruction and its response, in this form:
Instruction: ...
Response: ...

Instruction:""",
    "schema": """\
{{ text }}

What the text says, as JSON:""",
}
_MARK = "Response:"
_LINE = r"[^\n]*\S[^\n]*\n"
# One line that is not empty, where it ends; and behind it what the form has.
FORMS = {
    "instruction": Structure.regex(_LINE),
    "both": Structure.regex(rf"{_LINE}{_MARK}\s*\S(?s:.)*"),
}


@dataclass(frozen=True)
class StructureText(Stage):
    """Adds ``instruction`` and ``response``, or with a schema its JSON as a value.
    The template sees the record's fields and ``text``. The own one of ``instruction`` shows
    examples and is fed as it is; others go through the chat template, if there is one.
    """

    kind: ClassVar[str] = "structure"
    about: ClassVar[str] = "text to an instruction/response record, or to JSON by a schema"
    field: str = option("text", "Field that holds the text.")
    mode: str = option(
        "instruction",
        "instruction: the model writes the instruction and the text itself is the response, so "
        "nothing in it can be invented; both: the model writes both.",
        choices=MODES,
    )
    prompt_template: str = option(
        "", "Jinja over the record's fields and text; @FILE reads it. Empty: the mode's own."
    )
    instruction_field: str = option("instruction", "Field for the instruction.")
    response_field: str = option("response", "Field for the response.")
    schema: str = option(
        "", "A JSON schema: the model writes such a value, and nothing else.", metavar="JSON|FILE"
    )
    schema_field: str = option("", "Field that holds a record's own schema.")
    value_field: str = option("value", "With a schema: field for the value.")
    constrained: bool = option(
        True,
        "The model can write nothing but the form; needs mlx-spec[structured].",
        off="--no-constrained",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Compiled now, so that a bad one shows at once; its text counts for a resume, not its file.
        object.__setattr__(self, "prompt_template", self._template.source)
        if self.schema:
            object.__setattr__(self, "schema", text_or_file(self.schema, "--schema"))
            assert self._own_schema is not None
        if self._by_schema and not self.constrained:
            raise InvalidRequest("[structure] a schema is kept by constraints alone")
        if self.constrained and not available() and not self._by_schema:
            warnings.warn(
                "[structure] without llguidance the model is asked for the form, and may write "
                'another: pip install "mlx-spec[structured]"',
                stacklevel=2,
            )
            object.__setattr__(self, "constrained", False)  # which a resume must find again

    @classmethod
    def prompts(cls) -> dict[str, str]:
        modes = {f"mode = {mode!r}": PROMPTS[mode] for mode in MODES}
        return modes | {"a schema": PROMPTS["schema"]}

    @property
    def _by_schema(self) -> bool:
        return bool(self.schema or self.schema_field)

    @cached_property
    def _own_schema(self) -> Structure | None:
        return Structure.json_schema(self.schema) if self.schema else None

    @property
    def own_template(self) -> str:
        return PROMPTS["schema" if self._by_schema else self.mode]

    @cached_property
    def _template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt_template or self.own_template, self.kind)

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        text = text_of(fields, self.field)
        raw = self.prompt_template == PROMPTS["instruction"]
        form = self._form(fields)
        sampling = {} if form is None else {"structure": form}
        return Generate(self._template.render(fields, text=text), sampling, raw=raw)

    def _form(self, fields: Mapping[str, Any]) -> Structure | None:
        """What the answer must be; None where it is only asked for."""
        own = fields.get(self.schema_field) if self.schema_field else None
        if own not in (None, ""):
            return structure_of(self.schema_field, own, "json_schema")
        if self._by_schema:
            if self._own_schema is None:
                raise InvalidRequest(f"[structure] no schema in field {self.schema_field!r}")
            return self._own_schema
        return FORMS[self.mode] if self.constrained else None

    def complete(self, fields: Mapping[str, Any], answer: GenerationResult) -> Done:
        """Cut the answer up.

        Raises:
            InvalidRequest: a part is missing or empty, or JSON is not whole.
        """
        if self._by_schema:
            return Done({self.value_field: _value(answer)})
        instruction, mark, response = answer.text.partition(_MARK)
        if self.mode == "instruction":
            # One line was asked for; models tend to go on.
            instruction = answer.text.strip().partition("\n")[0]
            response = text_of(fields, self.field)
        elif not mark:
            raise InvalidRequest(f"[structure] no {_MARK!r} in the answer {answer.text[:60]!r}")
        parts = {
            self.instruction_field: instruction.strip(),
            self.response_field: response.strip(),
        }
        empty = [name for name, part in parts.items() if not part]
        if empty:
            raise InvalidRequest(f"[structure] {empty[0]} is empty in the answer")
        return Done(parts)


def _value(answer: GenerationResult) -> Any:
    """The JSON value of an answer that is constrained to one."""
    if answer.finish_reason == "length":
        raise InvalidRequest(
            f"[structure] cut after {answer.generation_tokens} tokens (--max-tokens), before the "
            f"JSON was whole: {answer.text[-60:]!r}"
        )
    return json.loads(answer.text)
