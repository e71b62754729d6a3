"""Every way to draft, over every kind of cache: five requests in three slots, with a preemption.

A random model repeats nothing, or one thing for ever, so that lookups find nothing or are always
right. Here rows say five tokens only (a bias), some of them by lot: what was said before comes
again, and often goes on in another way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig, Structure
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.predicted import PredictedText
from mlx_spec.model.heads.head import DraftHead, HeadConfig
from mlx_spec.model.heads.stack import HeadStack
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.models import VOCABULARY
from tests.preemption import preempt
from tests.scenario import constrain, noisy_draft, plain_alone, target

ROWS = 3
# Prompts of one token, of several chunks, past a window of 16.
PROMPTS = (4, 26, 9, 1, 18)
TOKENS = (30, 22, 34, 28, 20)
SAID = dict.fromkeys((3, 17, 29, 41, 52), 60.0)
# By lot, and not quite: at first sight of a text its commonest continuation is likely.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.5, "seed": 1},
    {},
    {"temperature": 0.7, "seed": 2, "top_k": 3},
    {"temperature": 0.5, "seed": 3},
    {"temperature": 0.3, "seed": 4},
)
# Words of which some can only go on in one way, one after another.
WORDS = Structure.regex("(?:(?:abcdefgh|ponmlkji|acegikmo) ){3,6}")


def request(index: int, constrained: bool) -> Sequence:
    """Its text goes on for as many tokens as it may, unless its constraint ends it."""
    prompt = [(7 * index + 3 * n + n * n) % VOCABULARY for n in range(PROMPTS[index])]
    more: dict[str, Any] = {"structure": WORDS} if constrained else {"logit_bias": SAID}
    options = SamplingParams(max_tokens=TOKENS[index], **OPTIONS[index], **more)
    row = Sequence(prompt, options, index=index)
    constrain(row)
    return row


@cache
def alone(family: str, index: int, constrained: bool) -> tuple[int, ...]:
    """What it says without drafts, by itself."""
    row = request(index, constrained)
    return tuple(plain_alone(target(family), tuple(row.prompt), row.sampling))


@dataclass(frozen=True)
class Drafting:
    """What became of it.

    Attributes:
        wrong: rows that do not say what they say alone.
        drafted, accepted: by drafter.
        idle: rows nobody drafted for.
        packed: whether steps were, wherever the model allows it.
    """

    wrong: list[int]
    drafted: Counter[str]
    accepted: Counter[str]
    idle: list[int]
    packed: bool

    def rejected(self, drafter: str) -> int:
        return self.drafted[drafter] - self.accepted[drafter]


def run(family: str, draft: str) -> Drafting:
    """All requests, drafted for by these, another length for each row and step.

    Where constraints are drafted for, all rows have one; every second row if others draft too.
    """
    named = draft.split("+")
    models = {
        "model": lambda: noisy_draft(family, 0.3),
        "head": random_head,
        "stack": random_stack,
    }
    given = [models[name]() for name in named if name in models]
    layers = (0,) if "self" in named else None
    decoder = SpeculativeDecoder(
        target(family),
        draft_model=given[0] if given else None,
        speculation=SpeculationConfig(draft=kinds(draft), draft_layers=layers),
        policy=RaggedPolicy(3),
        batching=BatchingConfig(batch_size=ROWS, prefill_step_size=16, prefill_interleave=8),
    )
    every = 1 if draft == "forced" else 2
    bound = [("forced" in named and index % every == 0) for index in range(len(PROMPTS))]
    made = [request(index, one) for index, one in enumerate(bound)]
    expected = [alone(family, index, one) for index, one in enumerate(bound)]
    if "predicted" in named:
        for row, said in list(zip(made, expected, strict=True))[:: len(named)]:
            row.prediction = PredictedText(edited(said))
    preempt(decoder, made)
    drafted, accepted = guessed(made)
    return Drafting(
        [row.index for row, said in zip(made, expected, strict=True) if tuple(row.tokens) != said],
        drafted,
        accepted,
        [row.index for row in made if not row.drafted],
        (decoder.meter.packed > 0) is decoder.runner.packs,
    )


def edited(said: tuple[int, ...]) -> list[int]:
    """Nearly what a row says: some tokens are others, one is missing, one is there twice."""
    changed = [token + 1 if place % 9 == 5 else token for place, token in enumerate(said)]
    return [*changed[:7], *changed[8:15], *changed[14:]]


def guessed(made: list[Sequence]) -> tuple[Counter[str], Counter[str]]:
    """Drafted and accepted tokens of all rows, by drafter."""
    drafted: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    for row in made:
        for name, of in row.drafters.items():
            drafted[name] += of.drafted
            accepted[name] += of.accepted
    return drafted, accepted


def kinds(draft: str) -> str:
    """As options name it: a stack is a head."""
    return draft.replace("stack", "head")


def random_head() -> DraftHead:
    mx.random.seed(5)
    return DraftHead(HeadConfig(32, 48, 4, 2, 8, VOCABULARY))


def random_stack(depth: int = 3, *, chained: bool = True, window: int | None = None) -> HeadStack:
    """Heads behind one another."""
    mx.random.seed(5)
    heads = [DraftHead(HeadConfig(32, 48, 4, 2, 8, VOCABULARY)) for _ in range(depth)]
    for head in heads:
        head.window = window
    return HeadStack(heads, chained=chained)
