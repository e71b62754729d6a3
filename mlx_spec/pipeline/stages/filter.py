"""Filter: keep or drop a record, and say why.

Plain rules first, since they cost nothing; then, if asked, the model: it drops where its
probability of "no" to the question reaches a threshold. The reason always carries the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.stage import Done, Request, Score, Stage, text_of
from mlx_spec.pipeline.stages.classify import probabilities
from mlx_spec.pipeline.templates import PromptTemplate

PROMPT = """\
Text: {{ text }}

Question: {{ question }}
Answer (yes or no):"""
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Filter(Stage):
    """Adds ``keep`` and ``reason``; what is dropped does not reach later stages.

    Attributes:
        field: the text.
        min_chars, max_chars: bounds of its length; max 0 for none.
        must_match, must_not_match: regular expressions, searched for in the text.
        question: asked about the text; empty asks no model.
        threshold: probability of "no" from which a record is dropped.
        prompt_template: sees the record's fields, ``text`` and ``question``; must end so that
            " yes" or " no" is what comes next.
    """

    kind: ClassVar[str] = "filter"
    about: ClassVar[str] = "keep or drop, with a reason: rules, then the model's yes or no"
    field: str = "text"
    min_chars: int = 1
    max_chars: int = 0
    must_match: str = ""
    must_not_match: str = ""
    question: str = "Is this text clear, complete and useful?"
    threshold: float = 0.5
    prompt_template: str = PROMPT

    def __post_init__(self) -> None:
        if self.min_chars < 0 or self.max_chars < 0 or 0 < self.max_chars < self.min_chars:
            raise InvalidRequest(
                f"[filter] min_chars={self.min_chars}, max_chars={self.max_chars}, expected "
                "0 <= min_chars <= max_chars, or max_chars 0"
            )
        if not 0 < self.threshold <= 1:
            raise InvalidRequest(f"[filter] threshold={self.threshold}, expected one in (0, 1]")
        for name in ("must_match", "must_not_match"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise InvalidRequest(f"[filter] {name}: {error}") from error
        # Compiled now, so that a bad one shows at once; its text counts for a resume, not its file.
        object.__setattr__(self, "prompt_template", self._template.source)

    @property
    def uses(self) -> Literal["generate", "score"]:
        """The answers are scored."""
        return "score"

    @cached_property
    def _template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt_template, "filter")

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        """The rules' verdict, or the question."""
        text = fields.get(self.field)
        broken = self._broken_rule(text if isinstance(text, str) else "")
        if broken is not None:
            return Done({"keep": False, "reason": broken}, dropped=True)
        if not self.question:
            return Done({"keep": True, "reason": "all rules hold"})
        text = text_of(fields, self.field)
        prompt = self._template.render({**fields, "text": text}, question=self.question)
        return Score(prompt, (f" {YES}", f" {NO}"))

    def complete(self, fields: Mapping[str, Any], answer: dict[str, float]) -> Done:
        """Keep, unless the model says no surely enough."""
        no = probabilities(answer)[NO]
        dropped = no >= self.threshold
        sign = ">=" if dropped else "<"
        reason = f"model: p(no) {no:.4f} {sign} {self.threshold}"
        return Done({"keep": not dropped, "reason": reason}, dropped=dropped)

    def _broken_rule(self, text: str) -> str | None:
        size = len(text.strip())
        if size < self.min_chars:
            return f"too short: {size} characters, {self.min_chars} wanted"
        if self.max_chars and size > self.max_chars:
            return f"too long: {size} characters, {self.max_chars} allowed"
        if self.must_match and not re.search(self.must_match, text):
            return f"does not match {self.must_match!r}"
        if self.must_not_match and re.search(self.must_not_match, text):
            return f"matches {self.must_not_match!r}"
        return None
