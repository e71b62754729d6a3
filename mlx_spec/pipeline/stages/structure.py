"""Structure: from a text to an instruction/response record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.stage import Done, Generate, Request, Stage, option, text_of
from mlx_spec.pipeline.templates import PromptTemplate
from mlx_spec.results import GenerationResult

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
}
_MARK = "Response:"


@dataclass(frozen=True)
class StructureText(Stage):
    """Adds ``instruction`` and ``response``.
    The template sees the record's fields and ``text``. The own one of ``instruction`` shows
    examples and is fed as it is; others go through the chat template, if there is one.
    """

    kind: ClassVar[str] = "structure"
    about: ClassVar[str] = "text to an instruction/response record"
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

    def __post_init__(self) -> None:
        super().__post_init__()
        # Compiled now, so that a bad one shows at once; its text counts for a resume, not its file.
        object.__setattr__(self, "prompt_template", self._template.source)

    @classmethod
    def prompts(cls) -> dict[str, str]:
        return {f"mode = {mode!r}": prompt for mode, prompt in PROMPTS.items()}

    @property
    def own_template(self) -> str:
        return PROMPTS[self.mode]

    @cached_property
    def _template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt_template or self.own_template, self.kind)

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        text = text_of(fields, self.field)
        raw = self.prompt_template == PROMPTS["instruction"]
        return Generate(self._template.render(fields, text=text), raw=raw)

    def complete(self, fields: Mapping[str, Any], answer: GenerationResult) -> Done:
        """Cut the answer up.

        Raises:
            InvalidRequest: a part is missing or empty.
        """
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
