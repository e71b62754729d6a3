"""Align: hold texts to a policy, by flagging what breaks it or by rewriting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.stage import Done, Generate, Request, option, text_of
from mlx_spec.pipeline.stages.scored import YES_NO, TwoAnswers
from mlx_spec.pipeline.statements import stated_breach
from mlx_spec.pipeline.verdicts import Verdict
from mlx_spec.results import GenerationResult

MODES = ("flag", "rewrite")
REWRITE = """\
Policy: {{ policy }}

Text: {{ text }}

Rewrite the text so that it keeps to the policy and says the same otherwise.
Rewritten:"""


@dataclass(frozen=True)
class Align(TwoAnswers):
    """``flag`` adds ``flagged`` and ``policy_score``; ``rewrite`` adds the rewritten text.

    Its template also sees ``policy`` and ``answers``.
    """

    kind: ClassVar[str] = "align"
    asks: ClassVar[str] = "Policy: {{ policy }} Does this text break the policy?"
    about: ClassVar[str] = "flag what breaks a policy, or rewrite it"
    policy: str = option("", "The rules, in words.")
    mode: str = option(
        "flag", "flag scores two answers and generates nothing; rewrite.", choices=MODES
    )
    answers: tuple[str, ...] = option(
        YES_NO,
        "Two words: the answer that flags a record, and the other one. Yes and no score the "
        "policy as a statement; other words name two kinds of text.",
        words=True,
    )
    threshold: float = option(
        0.5, "Probability of the first answer from which a record is flagged."
    )
    drop: bool = option(False, "Flagged records do not reach later stages.", off="--no-drop")
    output_field: str = option("aligned", "Field for the rewritten text.")

    def __post_init__(self) -> None:
        if not self.policy.strip():
            raise InvalidRequest("[align] policy is empty; say what texts must keep to")
        super().__post_init__()

    @property
    def uses(self) -> Literal["generate", "score"]:
        """A flag is scored, a rewritten text generated."""
        return "score" if self.mode == "flag" else "generate"

    @property
    def drops(self) -> bool:
        return self.drop

    @classmethod
    def prompts(cls) -> dict[str, str]:
        return {**super().prompts(), "mode = 'rewrite'": REWRITE}

    @property
    def statement(self) -> str:
        """That the text breaks the policy."""
        return stated_breach(self.policy)

    @property
    def own_template(self) -> str:
        """The mode's: a question or a kind of text, or the order to rewrite."""
        return REWRITE if self.mode == "rewrite" else super().own_template

    @property
    def own_variables(self) -> dict[str, Any]:
        return {"policy": self.policy, "answers": list(self.answers)}

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        if self.mode == "rewrite":
            return Generate(self.render(fields, text_of(fields, self.field)))
        return self.ask_answers(fields)

    def complete(self, fields: Mapping[str, Any], answer: Any) -> Done:
        """The flag with its score, or the new text.

        Raises:
            InvalidRequest: nothing was written.
        """
        if isinstance(answer, GenerationResult):
            if not answer.text.strip():
                raise InvalidRequest("[align] the answer is empty")
            return Done({self.output_field: answer.text.strip()})
        word = self.answers[0].strip()
        score = self.share(answer, word)
        flagged = score >= self.threshold
        outcome = "flagged" if flagged else "not flagged:"
        verdict = Verdict(outcome, f"p({word})", score, "the policy does", harmless=not flagged)
        found = {"flagged": flagged, "policy_score": score}
        return Done(found, dropped=flagged and self.drop, verdict=verdict)
