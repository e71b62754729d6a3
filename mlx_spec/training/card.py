"""The card of a trained draft: what it is for, what it was trained on, and what it reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from mlx_spec import __version__
from mlx_spec.training.acceptance import POSITIONS, TEMPERATURE, Acceptance
from mlx_spec.training.loop import Standing
from mlx_spec.training.recipe import Recipe

_LIBRARIES = ("mlx", "mlx-lm")


@dataclass(frozen=True)
class Corpus:
    """What there was to learn from.

    Attributes:
        questions, held_out: numbers of them.
        tokens: of prompts and answers, trained on.
        measured: of the held-out answers.
        covered: share of the held-out answers' tokens that the draft can guess at all.
    """

    questions: int
    held_out: int
    tokens: int
    measured: int
    covered: float


@dataclass(frozen=True)
class Card:
    """All that a card says.

    Attributes:
        target: the name that it was loaded by.
        parameters: numbers that were trained.
    """

    target: str
    recipe: Recipe
    parameters: int
    corpus: Corpus
    progress: Standing
    reached: Mapping[str, Acceptance]

    def __str__(self) -> str:
        return "\n\n".join([self._head(), self._made(), self._table(), self._closing()]) + "\n"

    def _head(self) -> str:
        what = "A draft head" if self.recipe.kind == "head" else "A small draft model"
        return (
            f"# {what} for {self.target}\n\n{what} of {self.parameters:,} parameters. It guesses "
            f"tokens ahead and {self.target} verifies them: the text is {self.target}'s own, "
            "sooner.\n\n"
            f"    mlx-spec generate --model {self.target} --draft-model THIS_FOLDER -p ..."
        )

    def _made(self) -> str:
        corpus, recipe, progress = self.corpus, self.recipe, self.progress
        temperatures = " and ".join(f"T={each:g}" for each in recipe.temperatures)
        libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
        depths = f", {recipe.depths} positions ahead" if recipe.kind == "head" else ""
        return (
            f"**Trained on** {corpus.tokens:,} tokens: {corpus.questions:,} prompts and what "
            f"{self.target} itself answered at {temperatures}, up to {recipe.max_tokens} tokens "
            f"each. Prompts held out: {corpus.held_out:,}.\n\n"
            f"**Training**: {progress.step:,} steps, {progress.tokens:,} tokens in "
            f"{progress.seconds / 60:.0f} minutes, learning rate up to {recipe.learning_rate:g}"
            f"{depths}; loss at the end {progress.loss:.3f}. It can guess "
            f"{recipe.vocabulary:,} tokens, which are {corpus.covered:.1%} of the held-out "
            f"answers. Made by `mlx-spec train-draft` {__version__} ({libraries})."
        )

    def _table(self) -> str:
        numbers = [str(number) for number in range(1, POSITIONS + 1)]
        lines = [
            f"**Reached** on {self.corpus.measured:,} tokens of held-out answers: how often the "
            "target would accept the guess at position 1, 2, ..., given those before it. The last "
            f"column: tokens of a greedy pass with {POSITIONS} guesses.",
            "",
            f"| category | {' | '.join(f'T=0, {n}' for n in numbers)} | "
            f"{' | '.join(f'T={TEMPERATURE}, {n}' for n in numbers)} | tokens a pass |",
            f"|---|{'---|' * (2 * POSITIONS + 1)}",
        ]
        for name, acceptance in self.reached.items():
            greedy, shared = acceptance.rates
            cells = [f"{rate:.2f}" for rate in [*greedy, *shared]]
            lines.append(f"| {name or 'all'} | {' | '.join(cells)} | {acceptance.tokens:.2f} |")
        return "\n".join(lines)

    def _closing(self) -> str:
        return (
            "**Licence**: it was trained on text that its target wrote; look at the target's "
            "licence for what that allows, and at that of the prompts."
        )
