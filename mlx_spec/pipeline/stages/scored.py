"""What the stages have in common that score words after a prompt: classify, filter, align."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.stage import Score, Stage, option, text_of
from mlx_spec.pipeline.statements import STATED
from mlx_spec.pipeline.templates import PromptTemplate

CALIBRATIONS = ("content-free", "none")
YES_NO = ("yes", "no")
# Measured against others: see docs/stages.md.
KIND = """\
Text: {{ text }}
This text is an example of"""


@dataclass(frozen=True)
class ScoredStage(Stage):
    """A stage whose answer is one of some words, the one that goes on best with the prompt."""

    field: str = option("text", "Field that holds the text.")
    prompt_template: str = option(
        "",
        "Jinja over the record's fields, text and the stage's own options; @FILE reads it. The "
        "answer is what comes right behind it. Empty: the stage's own.",
    )
    chat: bool = option(
        False,
        "Ask in the model's chat template; the prompt's last line begins the answer.",
        off="--no-chat",
    )
    calibration: str = option(
        "content-free",
        "content-free takes off what each answer scores behind texts that say nothing; none.",
        choices=CALIBRATIONS,
    )
    neutral: tuple[str, ...] = option(
        ("N/A", "", "[text]"), "The texts that say nothing, for the calibration."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration != "none" and not self.neutral:
            raise InvalidRequest(f'[{self.kind}] no neutral texts; calibration = "none" needs none')
        # Compiled now, so that a bad one shows at once; its text counts for a resume, not its file.
        object.__setattr__(self, "prompt_template", self._template.source)

    @property
    def uses(self) -> Literal["generate", "score", "nothing"]:
        return "score"

    @property
    def own_template(self) -> str:
        """The prompt where the user gives none."""
        raise NotImplementedError

    @cached_property
    def _template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt_template or self.own_template, self.kind)

    @property
    def own_variables(self) -> dict[str, Any]:
        """What the template sees of the stage's options."""
        raise NotImplementedError

    def render(self, fields: Mapping[str, Any], text: str) -> str:
        """The prompt for a record whose text is ``text``."""
        return self._template.render({**fields, self.field: text}, **self.own_variables, text=text)

    def ask(
        self, fields: Mapping[str, Any], words: tuple[str, ...], *, variants: bool = False
    ) -> Score:
        """The request: which of the words goes on best with the prompt."""
        texts = self.neutral if self.calibration != "none" else ()
        neutral = [self.render(fields, text) for text in texts]
        return Score(
            self.render(fields, text_of(fields, self.field)),
            words,
            tuple(prompt for prompt in neutral if prompt.strip()),  # a bare "" cannot be fed
            variants=variants,
            chat=self.chat,
        )


@dataclass(frozen=True)
class TwoAnswers(ScoredStage):
    """One of two answers: yes or no, or one of two kinds of text.

    With the stage's own prompt, raw and calibrated, yes or no is how much likelier the text makes
    the question's statement.
    """

    asks: ClassVar[str]
    answers: tuple[str, ...] = YES_NO
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InvalidRequest(
                f"[{self.kind}] threshold={self.threshold}, expected one in (0, 1]"
            )
        check_words(self.kind, "answers", self.answers, 2)
        super().__post_init__()

    @property
    def statement(self) -> str:
        """What "This text" goes on with for a yes; empty where the question has no such form."""
        raise NotImplementedError

    @property
    def own_template(self) -> str:
        """The question, stated if it can be, or the kind of text."""
        plain = self.chat or self.calibration == "none" or not _yes_no(self.answers)
        return own_prompt(self.asks, self.answers) if plain or not self.statement else STATED

    @classmethod
    def prompts(cls) -> dict[str, str]:
        return {
            "answers yes and no": STATED,
            "yes and no, in a chat, without calibration, or not to be stated": own_prompt(
                cls.asks, YES_NO
            ),
            "other answers": own_prompt(cls.asks, ("", "")),
        }

    def ask_answers(self, fields: Mapping[str, Any]) -> Score:
        """The request: the two answers, or the statement."""
        if self.prompt_template == STATED and self.statement:
            return self.ask(fields, (self.statement,))
        return self.ask(fields, self.answers, variants=True)

    def share(self, scores: Mapping[str, float], answer: str) -> float:
        """Probability of one of the answers."""
        if len(scores) == 1:
            (likelier,) = scores.values()
            scores = {one: likelier if _says_yes(one) else 0.0 for one in self.answers}
        return probabilities(scores)[answer.strip()]


def own_prompt(question: str, answers: tuple[str, ...]) -> str:
    """A template for two answers: a question for yes and no, else a kind of text to name."""
    return f"Text: {{{{ text }}}}\n{question}\nAnswer:" if _yes_no(answers) else KIND


def _yes_no(answers: tuple[str, ...]) -> bool:
    return {answer.strip().lower() for answer in answers} == set(YES_NO)


def _says_yes(answer: str) -> bool:
    return answer.strip().lower() == YES_NO[0]


def check_words(kind: str, name: str, words: tuple[str, ...], exactly: int | None = None) -> None:
    """Refuse labels or answers that are too few, equal or empty."""
    wanted = "at least two" if exactly is None else f"exactly {exactly}"
    few = len(words) < 2 or exactly not in (None, len(words))
    if few or len({word.strip() for word in words}) != len(words):
        raise InvalidRequest(f"[{kind}] {name}={list(words)}, expected {wanted} different ones")
    if not all(word.strip() for word in words):
        raise InvalidRequest(f"[{kind}] {name}={list(words)}: one is empty")


def probabilities(log_probs: Mapping[str, float]) -> dict[str, float]:
    """Softmax of the answers' log-probabilities, to four places, blanks stripped.

    Four places: the last bits of a float32 depend on what else is in the batch, and a resumed run
    must write what an undisturbed one would.
    """
    top = max(log_probs.values())
    weights = {label.strip(): math.exp(value - top) for label, value in log_probs.items()}
    total = sum(weights.values())
    return {label: round(weight / total, 4) for label, weight in weights.items()}
