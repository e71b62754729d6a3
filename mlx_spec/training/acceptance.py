"""How often the target would accept a draft's guesses, position by position, on held-out answers.

Each token of an answer is taken as the last verified one, and so many guesses as are drafted are
made from there. Greedy: the guess is the target's own choice. At a temperature: the chance that
both choose alike with shared noise is close to what their distributions have in common, 1 - TV,
here over the target's likeliest tokens. A position counts where those before it were accepted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from mlx_spec.training.batch import Batch
from mlx_spec.training.features import Example

POSITIONS = 4
TEMPERATURE = 0.8
_TOGETHER = 4


class Guesser(Protocol):
    """A draft, as far as it is measured."""

    def guess(self, module: Any, batch: Batch, depths: int) -> list[mx.array]:
        """Logits [B, N, V'] at each depth, all at p of token p + 2."""

    def ids(self, rows: mx.array) -> mx.array:
        """The target's tokens for rows of V'."""


@dataclass
class Acceptance:
    """Sums over positions of drafts.

    Attributes:
        tried: guesses that counted, by position.
        greedy: of them those that were right.
        shared: and the sum of what both distributions had in common at TEMPERATURE.
    """

    tried: Any = field(default_factory=lambda: np.zeros(POSITIONS))
    greedy: Any = field(default_factory=lambda: np.zeros(POSITIONS))
    shared: Any = field(default_factory=lambda: np.zeros(POSITIONS))

    def add(self, right: Any, common: Any) -> None:
        """Of many drafts, [drafts, POSITIONS] each."""
        alive = np.cumprod(right, axis=1)
        counted = np.concatenate([np.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
        self.tried += counted.sum(axis=0)
        self.greedy += alive.sum(axis=0)
        self.shared += (common * counted).sum(axis=0)

    @property
    def rates(self) -> tuple[list[float], list[float]]:
        """By position: greedy, and at TEMPERATURE."""
        tried = np.maximum(self.tried, 1)
        return (self.greedy / tried).tolist(), (self.shared / tried).tolist()

    @property
    def tokens(self) -> float:
        """Tokens that a pass with POSITIONS greedy guesses emits, the target's own included."""
        return 1 + float(self.greedy.sum() / max(1, self.tried[0]))


def measure(guesser: Guesser, module: Any, examples: Seq[Example]) -> dict[str, Acceptance]:
    """Acceptance by category, in the order of their names; all of them under an empty name."""
    found: dict[str, Acceptance] = defaultdict(Acceptance)
    for some in _groups(examples):
        batch = Batch.of(some)
        right, common = _compare(guesser, module, batch)
        for row, example in enumerate(some):
            # The last guess is of the text's last token, and a draft's places lie side by side.
            first, last = example.answer - 1, len(example) - 1 - POSITIONS
            if last <= first:
                continue
            places = np.arange(first, last)[:, None] + np.arange(POSITIONS)
            depths = np.broadcast_to(np.arange(POSITIONS), places.shape)
            for name in {"", example.category}:
                found[name].add(right[depths, row, places], common[depths, row, places])
    return dict(sorted(found.items()))


def _groups(examples: Seq[Example]) -> Iterable[list[Example]]:
    ordered = sorted(examples, key=len)
    return (ordered[i : i + _TOGETHER] for i in range(0, len(ordered), _TOGETHER))


def _compare(guesser: Guesser, module: Any, batch: Batch) -> tuple[Any, Any]:
    """[POSITIONS, B, N] each: guesses that are the target's choice, and what is in common."""
    wanted = mx.softmax(batch.logprobs / TEMPERATURE, axis=-1)
    right, common = [], []
    for logits in guesser.guess(module, batch, POSITIONS):
        right.append(guesser.ids(mx.argmax(logits, axis=-1)) == batch.best)
        given = mx.softmax(logits / TEMPERATURE, axis=-1)
        given = mx.take_along_axis(given, batch.likely, axis=-1)
        common.append(mx.minimum(given, wanted).sum(axis=-1))
        mx.eval(right[-1], common[-1])
    return np.array(mx.stack(right)).astype(float), np.array(mx.stack(common))
