"""One architecture through one engine: more requests than rows, ragged drafts, a preemption.

What comes out is compared with mlx-lm's own greedy decoding of the same model alone. Where a model
computes one new token in another way than several (``Support.verdict`` says so) the near-tie rule
holds: whatever token was chosen, mlx-lm's own logits of the same text put it at most ``NEAR`` of
their range below the largest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.generate import generate_step

from mlx_spec.cache.layout import own_caches
from mlx_spec.config import (
    PLAIN_CACHES,
    BatchingConfig,
    CacheOptions,
    SamplingParams,
    SpeculationConfig,
)
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.model.known_support import support_of
from mlx_spec.model.support import Support
from mlx_spec.sequence import Sequence
from tests.architectures import build
from tests.fakes import KnowingDrafter, RaggedPolicy
from tests.preemption import preempt
from tests.tiny_sizes import VOCABULARY

ROWS = 3
NEAR = 1e-4  # of the logits' range; one rounding of float32 is a thousandth of that


@dataclass(frozen=True)
class Plan:
    """Sizes of a run.

    Attributes:
        prompts, tokens: of each request, how many; the longest prompt is fed in several chunks.
        acceptance: share of guesses that are right, on average.
        reusing: every second prompt begins alike and beginnings are kept.
        draft: a model drafts, the same one with disturbed weights over caches of its own kind, and
            steps are built ahead; else guesses come from the host, and steps are taken in turn.
        layers: of the model itself, which draft; None: others do.
        caches: what is kept of keys and values, by mlx-lm and here; where they are packed, heads
            are ``wide``.
        debug: every row's caches are compared with a lone one's after every step.
    """

    prompts: tuple[int, ...] = (4, 40, 9, 1, 18)
    tokens: tuple[int, ...] = (22, 20, 26, 32, 18)
    acceptance: float = 0.7
    reusing: bool = False
    draft: bool = False
    layers: tuple[int, ...] | None = None
    caches: CacheOptions = PLAIN_CACHES
    debug: bool = False

    @property
    def named(self) -> bool:
        """Whether it is one of those that ``--draft`` knows who drafts."""
        return self.draft or self.layers is not None

    @property
    def wide(self) -> bool:
        return self.caches.kv_bits is not None

    @property
    def speculation(self) -> SpeculationConfig:
        if self.layers is None:
            return SpeculationConfig()
        return SpeculationConfig(draft="self", draft_layers=self.layers)


@dataclass
class Outcome:
    """What became of an architecture: mlx-lm's tokens, near-ties, or a reason."""

    model: Any
    support: Support
    wrong: list[str] = field(default_factory=list)
    near: int = 0  # rows that differ by the near-tie rule alone
    drafted: list[int] = field(default_factory=list)  # of each row
    accepted: list[int] = field(default_factory=list)
    reused: int = 0
    ahead: int = 0  # steps that were built while the one before computed
    packs: bool = False
    packed: int = 0  # steps whose rows brought other numbers of tokens, and no holes
    folds: bool = False


@contextmanager
def not_compiled() -> Iterator[None]:
    """Fused functions as they are written: on a CPU each is a run of a C++ compiler."""
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def requests(plan: Plan) -> list[Sequence]:
    """The same for every architecture."""
    rng = random.Random(3)
    system = [rng.randrange(VOCABULARY) for _ in range(21)]
    prompts = [[rng.randrange(VOCABULARY) for _ in range(count)] for count in plan.prompts]
    if plan.reusing:
        prompts = [[*system * (i % 2), *prompt] for i, prompt in enumerate(prompts)]
    return [
        Sequence(prompt, SamplingParams(max_tokens=count), index=index)
        for index, (prompt, count) in enumerate(zip(prompts, plan.tokens, strict=True))
    ]


def run(name: str, plan: Plan | None = None) -> Outcome:
    """Decode five requests in three slots, of which one is preempted and comes back."""
    plan = plan or Plan()
    model = build(name, wide=plan.wide)
    support = support_of(model, plan.caches)
    outcome = Outcome(model, support)
    if support.verdict == "refused":
        return outcome
    made = requests(plan)
    expected = [alone(model, row, plan.caches) for row in made]
    texts = [[*row.prompt, *said] for row, said in zip(made, expected, strict=True)]
    knowing = KnowingDrafter(texts, plan.acceptance, support.vocabulary)
    decoder = SpeculativeDecoder(
        model,
        drafter=knowing if not plan.named else None,
        speculation=plan.speculation,
        draft_model=disturbed(name, plan.wide) if plan.draft else None,
        policy=RaggedPolicy(most=4),
        batching=BatchingConfig(
            batch_size=ROWS,
            prefill_step_size=48,
            prefill_interleave=24,
            block_size=8,
            prefix_cache_bytes=2**22 if plan.reusing else 0,
            cache=plan.caches,
        ),
        debug=plan.debug,
    )
    preempt(decoder, made)
    for row, said in zip(made, expected, strict=True):
        _judge(outcome, model, plan.caches, row, said)
    outcome.drafted = [row.drafted for row in made]
    outcome.accepted = [row.accepted for row in made]
    outcome.reused = sum(row.reused for row in made)
    outcome.ahead = decoder.meter.ahead
    outcome.packs, outcome.packed = decoder.runner.packs, decoder.meter.packed
    outcome.folds = decoder.runner.pool.folds
    return outcome


def disturbed(name: str, wide: bool) -> Any:
    """The same model with other weights, which agrees with it often and not always."""
    model = build(name, wide=wide)
    mx.random.seed(1)
    weights = [
        (path, weight + 0.03 * mx.random.normal(weight.shape) * mx.std(weight))
        if weight.ndim > 1 and mx.issubdtype(weight.dtype, mx.floating)
        else (path, weight)
        for path, weight in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    return model


def alone(model: Any, row: Sequence, options: CacheOptions) -> list[int]:
    """What mlx-lm itself says to a prompt, over such caches of its own."""
    steps = generate_step(
        mx.array(row.prompt),
        model,
        max_tokens=row.max_new_tokens,
        prompt_cache=own_caches(model, options),
    )
    return [int(token) for token, _ in steps][: row.max_new_tokens]


def _judge(
    outcome: Outcome, model: Any, options: CacheOptions, row: Sequence, expected: list[int]
) -> None:
    if row.tokens == expected:
        return
    at = next(
        (n for n, (a, b) in enumerate(zip(row.tokens, expected, strict=False)) if a != b),
        min(len(row.tokens), len(expected)),
    )
    worst = shortfall(model, options, row)
    whole = len(row.tokens) == len(expected)
    if outcome.support.verdict == "near-ties" and whole and worst <= NEAR:
        outcome.near += 1
        return
    outcome.wrong.append(
        f"request {row.index}, prompt of {len(row.prompt)}: token {at} of {len(expected)} is "
        f"{row.tokens[at : at + 4]}, mlx-lm says {expected[at : at + 4]}; a token {worst:.1e} of "
        "the logits' range below the best"
    )


def shortfall(model: Any, options: CacheOptions, row: Sequence) -> float:
    """How far the worst of a row's tokens is below mlx-lm's best, relative to the logits' range."""
    text = [*row.prompt, *row.tokens]
    logits = model(mx.array([text[:-1]]), cache=own_caches(model, options))[0]
    logits = logits[len(row.prompt) - 1 :].astype(mx.float32)
    best, least = logits.max(axis=-1), mx.min(mx.where(mx.isinf(logits), 0, logits), axis=-1)
    chosen = mx.take_along_axis(logits, mx.array(row.tokens)[:, None], axis=-1)[:, 0]
    return float(((best - chosen) / (best - least)).max())
