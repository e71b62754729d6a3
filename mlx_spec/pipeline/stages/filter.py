"""Filter: keep or drop a record, and say why.

Plain rules first, since they cost nothing; then, if asked, the model: it drops where its
probability of the second answer reaches a threshold. The reason always carries the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.stage import Done, Request, option, text_of
from mlx_spec.pipeline.stages.scored import YES_NO, TwoAnswers
from mlx_spec.pipeline.statements import stated_question
from mlx_spec.pipeline.verdicts import Verdict


@dataclass(frozen=True)
class Filter(TwoAnswers):
    """Adds ``keep`` and ``reason``; what is dropped does not reach later stages.

    Its template also sees ``question`` and ``answers``.
    """

    kind: ClassVar[str] = "filter"
    asks: ClassVar[str] = "{{ question }}"
    about: ClassVar[str] = "keep or drop, with a reason: rules, then the model's answer"
    min_chars: int = option(1, "Least length of the text.")
    max_chars: int = option(0, "Most; 0 for no bound.")
    must_match: str = option("", "Regular expression, searched for in the text.")
    must_not_match: str = option("", "Likewise; what holds it is dropped.")
    question: str = option(
        "Is this text clear, complete and useful?",
        "Asked about the text. Empty: rules alone, no model.",
    )
    answers: tuple[str, ...] = option(
        YES_NO,
        "Two words: the answer that keeps a record, and the one that drops it. Yes and no "
        "score the question as a statement; other words name two kinds of text.",
        words=True,
    )
    threshold: float = option(0.5, "Probability of the second answer from which a record goes.")

    def __post_init__(self) -> None:
        if self.min_chars < 0 or self.max_chars < 0 or 0 < self.max_chars < self.min_chars:
            raise InvalidRequest(
                f"[filter] min_chars={self.min_chars}, max_chars={self.max_chars}, expected "
                "0 <= min_chars <= max_chars, or max_chars 0"
            )
        for name in ("must_match", "must_not_match"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise InvalidRequest(f"[filter] {name}: {error}") from error
        super().__post_init__()

    @property
    def uses(self) -> Literal["generate", "score", "nothing"]:
        """Answers are scored, if there is a question."""
        return "score" if self.question else "nothing"

    @property
    def drops(self) -> bool:
        return True

    @property
    def statement(self) -> str:
        return stated_question(self.question)

    @property
    def own_variables(self) -> dict[str, Any]:
        return {"question": self.question, "answers": list(self.answers)}

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        """The rules' verdict, or the question.

        Raises:
            InvalidRequest: there is no such field, or it holds no text.
        """
        broken = self._broken_rule(text_of(fields, self.field, blank=True))
        if broken is not None:
            return Done({"keep": False, "reason": broken}, dropped=True)
        if not self.question:
            return Done({"keep": True, "reason": "all rules hold"})
        return self.ask_answers(fields)

    def complete(self, fields: Mapping[str, Any], answer: dict[str, float]) -> Done:
        """Keep, unless the model says no surely enough."""
        word = self.answers[1].strip()
        no = self.share(answer, word)
        dropped = no >= self.threshold
        sign = ">=" if dropped else "<"
        reason = f"model: p({word}) {no:.4f} {sign} {self.threshold}"
        outcome = "dropped" if dropped else "kept"
        verdict = Verdict(outcome, f"p({word})", no, "the question does", harmless=not dropped)
        return Done({"keep": not dropped, "reason": reason}, dropped=dropped, verdict=verdict)

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
