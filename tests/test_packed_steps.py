"""Steps whose passes are packed: the same texts, and it happens by itself where it pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from metal_kernels.sample_rows import Group
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.config import BatchingConfig, CacheOptions, SamplingParams, SpeculationConfig
from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.control.report import StepReport
from mlx_spec.control.step_prices import StepPrices
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.decoding.drafters.head import HeadDrafter
from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.architectures import build
from tests.conftest import PAYS
from tests.fakes import RaggedPolicy
from tests.preemption import preempt
from tests.scenario import Job, make_jobs, noisy_draft, run_jobs, target
from tests.test_head_drafter import random_head
from tests.test_rules import NotTwice, NotTwiceOnHost

Patch = pytest.MonkeyPatch
ROWS = 3


class NotedPolicy(RaggedPolicy):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[StepReport] = []

    def observe(self, report: StepReport) -> None:
        super().observe(report)
        self.reports.append(report)


@pytest.fixture(scope="module", autouse=True)
def judged_before_bugs_are_planted() -> None:
    """Whether the model packs is asked once a process, and not while a bug hides it."""
    assert ModelRunner(target("llama"), 1).packs


@cache
def jobs() -> tuple[Job, ...]:
    """Greedy rows and such of each kind of sampling in turn."""
    greedy, sampled = (make_jobs("llama", kind, ROWS + 3) for kind in (False, True))
    return tuple(sampled[i] if i % 3 else greedy[i] for i in range(ROWS + 3))


class Eights(PassCosts):
    """Passes of a multiple of eight tokens are the cheapest."""

    def width(self, tokens: int) -> int:
        return -(-tokens // 8) * 8


def decoder_of(costs: PassCosts | None = None, **options: Any) -> SpeculativeDecoder:
    batching = BatchingConfig(batch_size=ROWS, prefill_step_size=16, prefill_interleave=4)
    options = {"batching": batching, "policy": NotedPolicy(), **options}
    decoder = SpeculativeDecoder(target("llama"), **options)
    if costs is not None:
        prices = StepPrices(costs, packs=lambda: decoder.runner.packs)
        decoder._stepper.parts = replace(decoder._stepper.parts, prices=prices)
    return decoder


def said(decoder: SpeculativeDecoder) -> list[tuple[int, ...]]:
    return [tuple(sequence.tokens) for sequence in run_jobs(decoder, jobs())]


def expected() -> list[tuple[int, ...]]:
    return [job.expected for job in jobs()]


@pytest.mark.parametrize("host", [False, True], ids=["ahead", "in turn"])
def test_ragged_steps_pack_by_themselves(host: bool) -> None:
    """Joins, leaves, greedy and sampling rows; every row's caches are looked at after each step."""
    rules = [NotTwiceOnHost()] if host else []
    decoder = decoder_of(PassCosts(), draft_model=noisy_draft("llama"), rules=rules, debug=True)
    tokens, meter = said(decoder), decoder.meter
    plain = (
        said(decoder_of(draft_model=None, rules=[NotTwice()], policy=None)) if host else expected()
    )
    assert tokens == plain
    assert meter.packed > meter.steps / 2
    assert meter.accepted > 0
    assert meter.computed < 0.8 * meter.rectangles
    reports = decoder.policy.reports  # type: ignore[attr-defined]
    assert sum(report.tokens for report in reports) == meter.computed
    assert all(
        report.tokens == len(report.rows) + sum(report.lengths)
        for report in reports
        if max(report.lengths)
    )
    stats = meter.stats(0)
    assert stats.packing.endswith(
        f"{meter.computed:,} tokens computed instead of {meter.rectangles:,}"
    )
    assert ("packed passes", stats.packing) in stats.summary


@pytest.mark.parametrize("drafts", [False, True])
def test_passes_are_padded_to_a_cheaper_number_of_tokens(drafts: bool) -> None:
    """Plain ones too; what the number is made of changes no token."""
    options: dict[str, Any] = {"policy": None, "speculation": SpeculationConfig(enabled=False)}
    if drafts:
        options = {"draft_model": noisy_draft("llama")}
    decoder = decoder_of(Eights(), **options)
    forward, computed = decoder.runner.forward, list[int]()

    def noting(rows: Rows) -> mx.array:
        if rows.tentative:  # else it reads prompts and nothing more
            computed.append(rows.tokens.size if rows.packing is None else len(rows.packing.rows))
        return forward(rows)

    decoder.runner.forward = noting  # type: ignore[method-assign]
    assert said(decoder) == expected()
    assert decoder.meter.packed > decoder.meter.steps // 2  # some rectangles are of 8 and 16
    assert all(tokens % 8 == 0 for tokens in computed)


def test_it_packs_where_that_is_cheaper() -> None:
    """Fewer tokens; or more, where that costs less, as on two cores; and not for a trifle."""
    pays = PAYS[0]
    steps = PassCosts()
    steps.put({8: 0.13, 12: 0.19, 16: 0.127, 24: 0.187, 32: 0.172})
    assert steps.width(12) == 16
    assert pays(steps, 16, 12)
    assert pays(steps, 8, 24)
    assert not pays(steps, 24, 32)
    flat = PassCosts()
    flat.put({tokens: 1e-3 + 1e-6 * tokens for tokens in (1, 8, 16, 32)})
    assert not pays(flat, 9, 32)
    flat.put({}, key=1e-9)
    assert pays(flat, 9, 32, 23 * 4096)  # what holes would read of long texts
    nothing_timed = PassCosts()
    assert pays(nothing_timed, 30, 32)
    assert not pays(nothing_timed, 32, 32)


class CountingDrafter(BaseDrafter):
    """Guesses one token, as often as it is asked; how many count is known on the device alone."""

    def propose(self, context: DraftContext, count: int) -> Draft:
        last = mx.take_along_axis(context.tokens, context.lengths[:, None] - 1, axis=1)
        return Draft(mx.repeat(last, count, axis=1), context.lengths % (count + 1))


def drafting(name: str) -> dict[str, Any]:
    """What drafts so."""
    if name == "counts":
        return {"drafter": CountingDrafter()}
    return {"speculation": SpeculationConfig(draft="self", draft_layers=(0,))}


@pytest.mark.parametrize("name", ["counts", "self"])
def test_every_drafter(name: str) -> None:
    decoder = decoder_of(**drafting(name))
    assert said(decoder) == expected()
    assert decoder.meter.drafted > 0
    assert decoder.meter.packed > 0


def _rounded(row: Sequence) -> list[tuple[int, float]]:
    return [(one.token, round(one.logprob, 4)) for one in row.logprobs]


def test_rejection_and_logprobs_are_those_of_rectangles(monkeypatch: Patch) -> None:
    """What reads whole distributions reads them where they belong."""

    def run() -> list[Any]:
        decoder = decoder_of(
            draft_model=noisy_draft("llama"),
            speculation=SpeculationConfig(acceptance="rejection"),
            rules=[NotTwice()],
        )
        rows = [
            Sequence(
                [3 + i] * (2 + i),
                SamplingParams(
                    max_tokens=30 + i,
                    temperature=0.8 * (i % 2),
                    seed=i,
                    top_logprobs=i % 3,
                    top_p=0.9,
                ),
                index=i,
            )
            for i in range(5)
        ]
        preempt(decoder, list(rows))
        packed.append(decoder.meter.packed)
        return [
            (row.tokens, [(one.token, round(one.logprob, 4)) for one in row.logprobs])
            for row in rows
        ]

    packed: list[int] = []
    ours = run()
    monkeypatch.setattr(ModelRunner, "packs", False)
    assert run() == ours
    assert packed[0] > 0 == packed[1]


@pytest.mark.parametrize(
    "options",
    [
        CacheOptions(max_kv_size=16),
        CacheOptions(kv_bits=8, kv_group_size=32),
        CacheOptions(kv_bits=8, kv_group_size=32, quantized_kv_start=9),
    ],
    ids=["short", "quantized", "late"],
)
def test_kinds_of_caches_through_a_preemption(options: CacheOptions, monkeypatch: Patch) -> None:
    """The rows' caches are looked at after each step, in packed passes and in rectangles."""

    def run() -> list[list[int]]:
        model = build("llama", wide=True)
        decoder = SpeculativeDecoder(
            model,
            draft_model=model,
            policy=RaggedPolicy(most=4),
            batching=BatchingConfig(batch_size=3, prefill_interleave=16, cache=options),
            debug=options.max_kv_size is None,
        )
        rows = [
            Sequence([1 + i] * (4 + 5 * i), SamplingParams(max_tokens=40 + i)) for i in range(5)
        ]
        preempt(decoder, list(rows))
        packed.append(decoder.meter.packed)
        return [row.tokens for row in rows]

    packed: list[int] = []
    ours = run()
    monkeypatch.setattr(ModelRunner, "packs", False)
    assert run() == ours
    assert packed[0] > 0 == packed[1]


def test_a_head_hears_the_states_of_its_rows(monkeypatch: Patch) -> None:
    """``Verified.hidden`` of a packed step is that of the rectangle, wherever tokens count."""
    heard: list[list[mx.array]] = []
    right = HeadDrafter.verified

    def noted(self: HeadDrafter, step: Any) -> None:
        heard[-1].append(step.hidden[:, 0])
        right(self, step)

    monkeypatch.setattr(HeadDrafter, "verified", noted)

    def run() -> list[tuple[int, ...]]:
        heard.append([])
        decoder = decoder_of(draft_model=random_head())
        tokens = said(decoder)
        packed.append(decoder.meter.packed)
        return tokens

    packed: list[int] = []
    assert run() == expected()
    monkeypatch.setattr(ModelRunner, "packs", False)
    assert run() == expected()
    assert packed[0] > 0 == packed[1]
    assert len(heard[0]) == len(heard[1])
    assert all(mx.allclose(a, b, atol=1e-5) for a, b in zip(*heard, strict=True))


# --- planted bugs --------------------------------------------------------------------------------


def options_of_the_wrong_row(patch: Patch) -> None:
    """Tokens are drawn with the seed and temperature of the row behind theirs."""
    right = SamplingBatch.of_tokens

    def planted(self: SamplingBatch, rows: Any) -> SamplingBatch:
        return right(self, [(row + 1) % self.rows.batch for row in rows])

    patch.setattr(SamplingBatch, "of_tokens", planted)


def seeds_in_the_order_of_the_group(patch: Patch) -> None:
    """Options are gathered, and seeds are those of the first rows that sample."""
    right = Group.of_tokens

    def planted(self: Group, rows: Any) -> Group:
        own = right(self, rows)
        index = mx.arange(len(own.rows)) % len(self.rows)
        return replace(own, seeds=self.seeds[index])

    patch.setattr(Group, "of_tokens", planted)


def noise_of_the_packed_place(patch: Patch) -> None:
    """Tokens are drawn with the noise of where they stand in the pass."""
    right = TokenPacking.packed

    def planted(self: TokenPacking, rectangle: mx.array) -> mx.array:
        out = right(self, rectangle)
        sampled = rectangle.ndim == 2 and rectangle.dtype == mx.int32 and rectangle.shape[1] > 1
        return mx.sort(out) if sampled else out

    patch.setattr(TokenPacking, "packed", planted)


@pytest.mark.parametrize(
    "plant", [options_of_the_wrong_row, seeds_in_the_order_of_the_group, noise_of_the_packed_place]
)
def test_a_planted_bug_shows(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert said(decoder_of(draft_model=noisy_draft("llama"))) != expected()
