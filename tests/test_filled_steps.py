"""Steps that are filled on the device: the same texts, the likelier guesses, and it happens.

As on a GPU, whose steps are built ahead: nothing of a draft is read before its step is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlx_spec import BatchingConfig, SamplingParams, SpeculationConfig, batch_generate
from mlx_spec.config import CacheOptions
from mlx_spec.control.filled import FilledDrafts
from mlx_spec.control.report import StepReport
from mlx_spec.control.step_prices import StepPrices
from mlx_spec.decoding import setup
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.prices import Measuring
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from scripts.simulated.machines import TILES_5
from tests.architectures import build
from tests.filled_runs import (
    ROWS,
    Filler,
    asking,
    decoder_of,
    given_rightly,
    jobs,
    reports_of,
    said,
)
from tests.leading import lead_alone
from tests.models import make_model
from tests.preemption import preempt, serve
from tests.scenario import noisy_draft, run_jobs, target, wrong_rows
from tests.structured_runs import constraints, request
from tests.structures import small_tokenizer
from tests.test_head_drafter import random_head

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module", autouse=True)
def judged_before_bugs_are_planted() -> None:
    """Whether the model packs is asked once a process, and not while a bug hides it."""
    assert ModelRunner(target("llama"), 1).packs


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "deepseek_v3"])
def test_texts_are_those_of_the_target_alone(family: str, monkeypatch: Patch) -> None:
    """Joins, leaves, ends in the middle of a step, greedy rows beside all kinds of sampling; models
    of windows, and such to which tokens are rows. Nobody is given a guess that is likelier to fall
    than one that is left out."""
    asked = asking(monkeypatch)
    decoder = decoder_of(target(family), noisy_draft(family))
    decoder._stepper.debug = family == "llama"  # each row's caches are looked at after each step
    assert wrong_rows(jobs(family), run_jobs(decoder, jobs(family))) == []
    meter, reports = decoder.meter, reports_of(decoder)
    assert meter.filled > meter.steps / 2
    assert meter.ahead > meter.steps / 2, "nobody waits for what the draft says"
    uneven = sum(len({*report.lengths}) > 1 for report in reports)
    assert uneven > len(reports) / 2, "rows have different numbers of guesses"
    assert given_rightly(decoder, asked) > 20
    assert any(0 in report.lengths for report in reports)
    assert 0 < meter.accepted < meter.drafted
    # What the host counted with is what was computed, and what rows were given.
    assert all(r.tokens == len(r.rows) + sum(r.lengths) for r in reports)
    assert meter.stats(0).packing.endswith("filled on the device")


@pytest.mark.parametrize(
    "options",
    [
        CacheOptions(max_kv_size=16),
        CacheOptions(kv_bits=8, kv_group_size=32, quantized_kv_start=9),
    ],
    ids=["short", "late"],
)
def test_kinds_of_caches_through_a_preemption(options: CacheOptions, monkeypatch: Patch) -> None:
    def run() -> list[list[int]]:
        model = build("llama", wide=True)
        decoder = decoder_of(model, model, prefill_interleave=16, cache=options)
        rows = [
            Sequence([1 + i] * (4 + 5 * i), SamplingParams(max_tokens=20 + i)) for i in range(5)
        ]
        preempt(decoder, list(rows))
        filled.append(decoder.meter.filled)
        return [row.tokens for row in rows]

    filled: list[int] = []
    ours = run()
    monkeypatch.setattr(Filler, "choose", lambda _, rows: [0] * len(rows))
    assert run() == ours
    assert filled[0] > 5
    assert filled[1] == 0


def test_a_head_hears_the_states_of_its_rows() -> None:
    """Its guesses come from hidden states of the rows that the device has filled."""
    decoder = decoder_of(target("llama"), random_head(), "head")
    assert said(decoder) == []
    assert decoder.meter.filled > decoder.meter.steps / 2
    assert decoder.meter.accepted > 0


def test_rows_with_a_grammar_beside_others() -> None:
    """While one is there steps are taken in turn; the pass is filled all the same, and what looks
    at rows gets them. Options that go by what was said, and log-probabilities, are others'."""
    wanted = [one if n % 3 == 1 else None for n, one in enumerate(constraints(7))]
    alone = [request(n, one) for n, one in enumerate(wanted)]
    rows = [request(n, one) for n, one in enumerate(wanted)]
    for row in (*alone, *rows):
        more: dict[str, Any] = {"logprobs": True} if row.index == 0 else {}
        more |= {"repetition_penalty": 1.3} if row.index == 3 else {}
        row.sampling = replace(row.sampling, **more)
    for row in alone:
        lone = SpeculativeDecoder(target("llama"), batching=BatchingConfig(batch_size=1))
        serve(lone, [row])
    decoder = decoder_of(target("llama"), noisy_draft("llama"))
    serve(decoder, rows)
    assert [row.tokens for row in rows] == [row.tokens for row in alone]
    assert [one.logprob for one in rows[0].logprobs] == pytest.approx(
        [one.logprob for one in alone[0].logprobs], abs=1e-4
    )
    assert decoder.meter.filled > decoder.meter.steps / 3


def test_nobody_fills_what_cannot_be_packed() -> None:
    """A model with states keeps its rectangles, under the policy that fills."""
    model = build("mamba")
    assert not ModelRunner(model, 1).packs
    made = Generated(model, model, "ngram+model")
    assert made.tokens == Generated(model, None).tokens
    assert made.stats.filled_steps == 0


# --- whose guesses they are ----------------------------------------------------------------------


class Generated:
    """Five requests in three rows, as on a GPU and under default settings else.

    Attributes:
        results, stats: of the call.
        words: of guesses that stood, what the draft said of each and what it says alone.
    """

    ENOUGH = 60  # words that are looked at

    def __init__(self, model: Any, draft: Any, kind: str | None = None, **options: Any) -> None:
        self.words: list[tuple[float, float]] = []
        self._known, self._draft = dict[Any, int](), draft
        own = FilledDrafts.observe

        def observe(policy: FilledDrafts, report: StepReport) -> None:
            self._hear(report)
            own(policy, report)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(setup, "on_cpu", lambda: False)
            patch.setattr(FilledDrafts, "observe", observe)
            made = batch_generate(
                model,
                None,
                [[3, 7, 11, 2, 9], [5, 1], [8, 8, 4, 6, 2, 1, 9, 3], [2, 4, 6], [9, 9, 1, 4]],
                draft_model=draft,
                speculation=SpeculationConfig(enabled=draft is not None, draft=kind),
                batching=BatchingConfig(batch_size=3),
                max_tokens=30,
                ignore_eos=True,
                **options,
            )
        self.stats, self.tokens = made.stats, [result.token_ids for result in made.results]

    def _hear(self, report: StepReport) -> None:
        rows: Any = report.rows
        for row, words, count in zip(rows, report.said, report.accepted, strict=False):
            known, first = row.known(0, row.length), self._known.get(row, len(row.prompt))
            for place, word in enumerate(words[: max(count, 0)]):
                at = first + place
                if at < len(known) and len(self.words) < self.ENOUGH:
                    temperature = row.sampling.temperature
                    lead = lead_alone(self._draft, known[:at], known[at], row.seed, temperature)
                    self.words.append((word, lead))
        self._known |= {row: row.length for row in rows}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_is_said_is_said_of_that_token_of_that_row(temperature: float) -> None:
    """The draft is the target, so that what it says of a guess is what the target says of that
    token: a number of another row or position shows."""
    model, same = (make_model("llama", seed=4) for _ in range(2))
    options: dict[str, Any] = {"temperature": temperature, "seed": 5}
    made = Generated(model, same, "ngram+model", **options)
    assert len(made.words) > 30
    assert [word for word, _ in made.words] == pytest.approx(
        [chance for _, chance in made.words], rel=1e-3
    )
    assert made.tokens == Generated(model, None, **options).tokens


def pretended(patch: Patch) -> None:
    """A GPU whose passes take what five tokens do, and whose clock is always right."""

    def before_step(self: Measuring, *_: Any) -> None:
        if not self._target.costs.known:
            self._target.costs.put({m: 1e-3 * TILES_5.verify(m) for m in TILES_5.edges})
            for part in self._drafts:
                part.costs.put({m: 1e-3 * TILES_5.draft(m) for m in TILES_5.edges})

    patch.setattr(setup, "on_cpu", lambda: False)
    patch.setattr(Measuring, "before_step", before_step)
    patch.setattr(StepPrices, "observe", lambda *_: None)


def test_under_default_settings_a_gpu_fills(monkeypatch: Patch) -> None:
    """Nothing is asked for but a draft model: steps are built ahead, rows get different numbers of
    guesses by what the draft says, and texts are the target's."""
    pretended(monkeypatch)
    decoder = SpeculativeDecoder(
        make_model("llama"),
        draft_model=noisy_draft.__wrapped__("llama"),
        tokenizer=small_tokenizer(),
        batching=BatchingConfig(batch_size=ROWS),
    )
    assert isinstance(decoder.policy, FilledDrafts)
    assert said(decoder) == []
    meter = decoder.meter
    assert meter.filled > meter.steps / 3
    assert meter.ahead > meter.steps / 2
    assert 0 < meter.accepted < meter.drafted
