"""Decoders whose steps are filled on the device, as many as there are, and what shows that rightly.

As on a GPU, whose steps are built ahead: nothing of a draft is read before its step is.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cache
from random import Random
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import BatchingConfig, SpeculationConfig
from mlx_spec.control.allocation import StepBudget, fill
from mlx_spec.control.confidence import Confidence
from mlx_spec.control.filling import Filling
from mlx_spec.control.offers import NOBODY, FixedSources, Offer, Settled
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row, cap, room_of
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters import chain as chain_module
from mlx_spec.decoding.drafters.chain import ChainDrafter
from mlx_spec.decoding.filling import reaching
from tests.scenario import Job, make_jobs, run_jobs, wrong_rows

Patch = pytest.MonkeyPatch
ROWS, MOST = 3, 4


class Filler(FixedSources):
    """Any number of guesses, for whoever is surest of them; rows that have none are among them.

    Attributes:
        reports: what it is told.
    """

    free = False

    def __init__(self, source: str) -> None:
        super().__init__(MOST, [source])
        self._random = Random(7)
        self.reports: list[StepReport] = []

    def settle(self, rows: Seq[Row], offers: Seq[Offer], covered: Seq[bool]) -> Settled:
        most = [n if own else 0 for n, own in zip(cap(room_of(rows), MOST), covered, strict=True)]
        if not any(most):
            return Settled([NOBODY] * len(rows), most, costly=False)
        guesses = self._random.randint(1, max(1, sum(most) - 1))
        times = [self._random.uniform(0.8, 1.2) for _ in rows]
        filling = Filling(most, guesses, Confidence().worth, times)
        return Settled([NOBODY] * len(rows), most, costly=True, filling=filling)

    def observe(self, report: StepReport) -> None:
        self.reports.append(report)


@cache
def jobs(family: str = "llama") -> tuple[Job, ...]:
    """Greedy rows and such of each kind of sampling in turn; more than rows, of which some end in
    the middle of a step."""
    count = 2 * ROWS + 1
    greedy, sampled = (make_jobs(family, kind, count) for kind in (False, True))
    return tuple(sampled[i] if i % 3 else greedy[i] for i in range(count))


def decoder_of(model: Any, draft: Any, kind: str = "model", **batching: Any) -> SpeculativeDecoder:
    """Filled at random, for as many rows as there are."""
    options = {"prefill_step_size": 16, "prefill_interleave": 4, **batching}
    choice = Filler(kind)
    decoder = SpeculativeDecoder(
        model,
        draft_model=draft,
        speculation=SpeculationConfig(draft=f"ngram+{kind}", num_draft_tokens=MOST),
        batching=BatchingConfig(batch_size=ROWS, **options),
        policy=choice,
    )
    assert isinstance(decoder.drafter, ChainDrafter)
    decoder.drafter.choice = choice
    return decoder


def reports_of(decoder: SpeculativeDecoder) -> list[StepReport]:
    choice: Any = decoder.policy
    filled: list[StepReport] = [report for report in choice.reports if report.said]
    return filled


def said(decoder: SpeculativeDecoder) -> list[int]:
    """Which requests said something else."""
    return wrong_rows(jobs(), run_jobs(decoder, jobs()))


Asked = list[tuple[mx.array, Filling]]


def asking(patch: Patch) -> Asked:
    """What the device is asked to give from now on."""
    asked: Asked = []
    own = chain_module.give

    def give(words: mx.array, filling: Filling) -> mx.array:
        asked.append((words, filling))
        return own(words, filling)

    patch.setattr(chain_module, "give", give)
    return asked


def given_rightly(decoder: SpeculativeDecoder, asked: Asked) -> int:
    """Steps whose guesses went to the likeliest of all rows, if all did; else 0."""
    wanted = dict[str, list[int]]()
    for words, filling in asked:
        values: Any = reaching(words, filling).tolist()
        own: Any = words.tolist()
        parts = zip(own, values, filling.most, strict=True)
        rows = [(row[:most], value[:most]) for row, value, most in parts]
        budget = StepBudget(0, filling.guesses, 0.0, 1.0)
        lengths = fill([value for _, value in rows], budget, range(len(rows)))
        wanted[repr([row for row, _ in rows])] = lengths
    reports = reports_of(decoder)
    right = all(wanted[repr(report.said)] == report.lengths for report in reports)
    return len(reports) if right else 0
