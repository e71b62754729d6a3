"""Batches of constrained and other rows, as they come and go."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter
from mlx_spec.sequence import Sequence
from mlx_spec.structured.compiler import guide_of
from tests.fakes import CyclingPolicy, KnowingDrafter, RaggedPolicy
from tests.models import VOCABULARY
from tests.scenario import FILTERS, noisy_draft, target
from tests.structures import END, Constrained, random_constraint, small_tokenizer

MOST = 100


@cache
def constraints(count: int, first: int = 0) -> tuple[Constrained, ...]:
    """Always the same ones; those of a longer list begin with those of a shorter one."""
    return tuple(random_constraint(random.Random(n)) for n in range(first, first + count))


def request(index: int, constraint: Constrained | None) -> Sequence:
    """Greedy and sampling ones in turn, of prompts of different lengths."""
    rng = random.Random(index)
    options = FILTERS[index % len(FILTERS)] if index % 2 else {}
    structure = constraint.structure if constraint else None
    most = MOST if constraint else 20
    sampling = SamplingParams(max_tokens=most, seed=index, structure=structure, **options)
    row = Sequence(
        [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 12))],
        sampling,
        stop_ids=frozenset({END}),
        index=index,
    )
    if structure is not None:
        row.guide = guide_of(structure, small_tokenizer())
    return row


def run(
    wanted: Seq[Constrained | None],
    *,
    family: str = "llama",
    rows: int = 4,
    drafted: bool = True,
    drafter: BaseDrafter | None = None,
    preempting: int = 0,
    only: Seq[int] | None = None,
    speculation: SpeculationConfig | None = None,
) -> tuple[SpeculativeDecoder, list[Sequence]]:
    """All requests, joining as rows become free; every so many steps one is preempted for a while.

    Drafts are a disturbed target's, of another length for each row and step, unless a drafter is
    given. ``only`` some of them are made.
    """
    options: dict[str, Any] = {"drafter": drafter} if drafter is not None else {}
    if drafted and drafter is None:
        options["draft_model"] = noisy_draft(family)
    decoder = SpeculativeDecoder(
        target(family),
        batching=BatchingConfig(batch_size=rows),
        speculation=speculation,
        policy=RaggedPolicy(4) if drafted else CyclingPolicy([0]),
        **options,
    )
    made = [request(i, one) for i, one in enumerate(wanted) if only is None or i in only]
    todo, away, step = list(made), list[Sequence](), 0
    while todo or away or decoder.busy:
        step += 1
        here = [row for row in decoder.running if not row.ended]
        if preempting and step % preempting == 0 and here:
            away.append(here[step // preempting % len(here)])
            decoder.suspend(away[-1], save=step % 2 == 0)
        ready = away[:-1] + todo if preempting and step % preempting < 2 else away + todo
        joining = ready[: decoder.free_rows]
        decoder.add(joining)
        todo, away = ([row for row in rest if row not in joining] for rest in (todo, away))
        decoder.step()
        assert step < 20_000, "the batch makes no progress"
    return decoder, made


def knowing(said: Seq[Sequence], acceptance: float = 0.7) -> KnowingDrafter:
    """Guesses what was said before, and some of it wrong."""
    texts = [row.prompt + row.tokens for row in said]
    return KnowingDrafter(texts, acceptance, VOCABULARY)


def invalid(wanted: Seq[Constrained | None], made: Seq[Sequence]) -> list[str]:
    """What each constrained row says that its constraint does not allow, whole or by its end."""
    wrong = []
    for constraint, row in zip(wanted, made, strict=True):
        text = small_tokenizer().decode(row.tokens)
        if constraint is not None and row.finish_reason == "stop" and not constraint.check(text):
            wrong.append(f"{constraint.structure}: {text!r}")
    return wrong
