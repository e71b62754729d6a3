"""Classify: one of given labels, by the model's probabilities of the labels themselves.

Nothing is generated and no prose is parsed: ``log p(label's tokens | prompt)`` is computed for
every label, less what the label scores behind texts that say nothing, and a softmax over them
gives the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mlx_spec.pipeline.stage import Done, Request, option
from mlx_spec.pipeline.stages.scored import ScoredStage, check_words, probabilities
from mlx_spec.pipeline.verdicts import Verdict

# Measured against longer ones that list the labels: see docs/stages.md.
PROMPT = """\
Text: {{ text }}
Topic:"""


@dataclass(frozen=True)
class Classify(ScoredStage):
    """Adds ``label`` and ``scores``; its template also sees ``labels``."""

    kind: ClassVar[str] = "classify"
    about: ClassVar[str] = "one of given labels, with scores from the labels' log-probabilities"
    labels: tuple[str, ...] = option((), "At least two, all different.", words=True)
    output_field: str = option("label", "Field for the label.")
    scores_field: str = option("scores", "Field for all scores.")

    def __post_init__(self) -> None:
        check_words(self.kind, "labels", self.labels)
        super().__post_init__()

    @classmethod
    def prompts(cls) -> dict[str, str]:
        return {"": PROMPT}

    @property
    def own_template(self) -> str:
        return PROMPT

    @property
    def own_variables(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        return self.ask(fields, self.labels)

    def complete(self, fields: Mapping[str, Any], answer: dict[str, float]) -> Done:
        scores = probabilities(answer)
        best = max(scores, key=lambda label: scores[label])
        verdict = Verdict(f"label {best!r} for", f"p({best})", scores[best], "the labels do")
        return Done({self.output_field: best, self.scores_field: scores}, verdict=verdict)
