"""Classify: one of given labels, by the model's probabilities of the labels themselves.

Nothing is generated and no prose is parsed: ``log p(label's tokens | prompt)`` is computed for
every label, and a softmax over them gives the scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.stage import Done, Request, Score, Stage, text_of
from mlx_spec.pipeline.templates import PromptTemplate

# What is the same for every record comes first: its K/V are computed once for all of them.
PROMPT = """\
Which one of these topics is the text about: {{ labels | join(", ") }}?

Text: {{ text }}
Topic:"""


@dataclass(frozen=True)
class Classify(Stage):
    """Adds ``label`` and ``scores``.

    Attributes:
        labels: at least two, all different.
        field: the text.
        prompt_template: sees the record's fields, ``text`` and ``labels``; must end so that a
            label, after a blank, is what comes next.
        output_field, scores_field: where label and scores go.
    """

    kind: ClassVar[str] = "classify"
    about: ClassVar[str] = "one of given labels, with scores from the labels' log-probabilities"
    labels: tuple[str, ...] = ()
    field: str = "text"
    prompt_template: str = PROMPT
    output_field: str = "label"
    scores_field: str = "scores"

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise InvalidRequest(
                f"[classify] labels={list(self.labels)}, expected at least two different ones"
            )
        if not all(label.strip() for label in self.labels):
            raise InvalidRequest(f"[classify] labels={list(self.labels)}: one is empty")
        # Compiled now, so that a bad one shows at once; its text counts for a resume, not its file.
        object.__setattr__(self, "prompt_template", self._template.source)

    @property
    def uses(self) -> Literal["generate", "score"]:
        """Labels are scored."""
        return "score"

    @cached_property
    def _template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt_template, "classify")

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        """The prompt, and the labels as words that follow it."""
        text = text_of(fields, self.field)
        prompt = self._template.render({**fields, "text": text}, labels=list(self.labels))
        return Score(prompt, tuple(f" {label}" for label in self.labels))

    def complete(self, fields: Mapping[str, Any], answer: dict[str, float]) -> Done:
        """The best label and all scores."""
        scores = probabilities(answer)
        best = max(scores, key=lambda label: scores[label])
        return Done({self.output_field: best, self.scores_field: scores})


def probabilities(log_probs: Mapping[str, float]) -> dict[str, float]:
    """Softmax of the labels' log-probabilities, to four places, blanks stripped.

    Four places: the last bits of a float32 depend on what else is in the batch, and a resumed run
    must write what an undisturbed one would.
    """
    top = max(log_probs.values())
    weights = {label.strip(): math.exp(value - top) for label, value in log_probs.items()}
    total = sum(weights.values())
    return {label: round(weight / total, 4) for label, weight in weights.items()}
