"""Align: hold texts to a policy, by flagging what breaks it or by rewriting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.stage import Done, Generate, Request, Score, Stage, text_of
from mlx_spec.pipeline.stages.classify import probabilities
from mlx_spec.pipeline.templates import PromptTemplate
from mlx_spec.results import GenerationResult

MODES = ("flag", "rewrite")
PROMPTS = {
    "flag": """\
Policy: {{ policy }}

Text: {{ text }}

Question: Does the text break the policy?
Answer (yes or no):""",
    "rewrite": """\
Policy: {{ policy }}

Text: {{ text }}

Rewrite the text so that it keeps to the policy and says the same otherwise.
Rewritten:""",
}
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Align(Stage):
    """``flag`` adds ``flagged`` and ``policy_score``; ``rewrite`` adds the rewritten text.

    Attributes:
        policy: the rules, in words.
        mode: ``flag`` (scores "yes" against "no", generates nothing) or ``rewrite``.
        field: the text.
        threshold: probability of "yes, it breaks the policy" from which a record is flagged.
        drop: flagged records do not reach later stages.
        prompt_template: sees the record's fields, ``text`` and ``policy``; empty takes the
            mode's own.
        output_field: where the rewritten text goes.
    """

    kind: ClassVar[str] = "align"
    about: ClassVar[str] = "flag what breaks a policy, or rewrite it"
    policy: str = ""
    mode: str = "flag"
    field: str = "text"
    threshold: float = 0.5
    drop: bool = False
    prompt_template: str = ""
    output_field: str = "aligned"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidRequest(f"[align] mode={self.mode!r}, expected one of {MODES}")
        if not self.policy.strip():
            raise InvalidRequest("[align] policy is empty; say what texts must keep to")
        if not 0 < self.threshold <= 1:
            raise InvalidRequest(f"[align] threshold={self.threshold}, expected one in (0, 1]")
        # Compiled now, so that a bad one shows at once; its text counts for a resume, not its file.
        object.__setattr__(self, "prompt_template", self._template.source)

    @property
    def uses(self) -> Literal["generate", "score"]:
        """A flag is scored, a rewritten text generated."""
        return "score" if self.mode == "flag" else "generate"

    @cached_property
    def _template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt_template or PROMPTS[self.mode], "align")

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        """The question, or the order to rewrite."""
        text = text_of(fields, self.field)
        prompt = self._template.render({**fields, "text": text}, policy=self.policy)
        return Score(prompt, (f" {YES}", f" {NO}")) if self.mode == "flag" else Generate(prompt)

    def complete(self, fields: Mapping[str, Any], answer: Any) -> Done:
        """The flag with its score, or the new text.

        Raises:
            InvalidRequest: nothing was written.
        """
        if isinstance(answer, GenerationResult):
            if not answer.text.strip():
                raise InvalidRequest("[align] the answer is empty")
            return Done({self.output_field: answer.text.strip()})
        score = probabilities(answer)[YES]
        flagged = score >= self.threshold
        found = {"flagged": flagged, "policy_score": score}
        return Done(found, dropped=flagged and self.drop)
