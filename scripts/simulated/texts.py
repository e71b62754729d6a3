"""Texts as a drafter sees them: how likely each of its next guesses stands, as the text goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

# Chance of each guess if those before it stand, the last one's beyond, after so many tokens.
Text = Callable[[int], Seq[float]]


def even(*chances: float) -> Text:
    """The same all along; the last chance also of all guesses beyond."""
    return lambda said: chances


def shifting(before: Seq[float], after: Seq[float], at: int) -> Text:
    """Another one from a token on."""
    return lambda said: before if said < at else after


def tokenwise(rng: random.Random, draw: Callable[[random.Random], float]) -> Text:
    """Another chance for each token of the text, drawn one by one."""
    own, known = random.Random(rng.random()), list[float]()

    def chances(said: int) -> Seq[float]:
        while len(known) < said + AHEAD:
            known.append(draw(own))
        return known[said : said + AHEAD]

    return chances


AHEAD = 8  # tokens that somebody looks ahead

# Chances of tokens, as a drafter that says how sure it is finds them.
TOKENS: dict[str, Callable[[random.Random], float]] = {
    "two kinds": lambda rng: 0.92 if rng.random() < 0.4 else 0.08,
    "mostly sure": lambda rng: rng.betavariate(1.8, 0.6),
    "half and half": lambda rng: rng.betavariate(0.6, 0.6),
    "seldom sure": lambda rng: rng.betavariate(0.4, 1.6),
    "all alike": lambda rng: 0.6,
}

# As small drafters do on kinds of questions: code and copied facts are easy, chat is not.
CATEGORIES = {
    "summary": (0.82, 0.74, 0.68),
    "maths": (0.74, 0.66, 0.60),
    "retrieval": (0.66, 0.58, 0.52),
    "chat": (0.55, 0.45, 0.38),
    "translation": (0.38, 0.28, 0.22),
    "poem": (0.22, 0.15, 0.10),
}


def mixed(rng: random.Random) -> Text:
    """One of the categories."""
    return even(*CATEGORIES[rng.choice(list(CATEGORIES))])


@dataclass
class Workload:
    """Rows of a batch and who follows them.

    Attributes:
        rows: of the batch.
        text: of each newcomer.
        tokens: that each newcomer says; None: no end.
        replace: whether newcomers follow rows that ended.
        prompt: tokens of each newcomer's prompt.
    """

    rows: int
    text: Callable[[random.Random], Text]
    tokens: Callable[[random.Random], int] | None = None
    replace: bool = True
    prompt: int = 32
