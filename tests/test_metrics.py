"""Percentiles, gaps, goodput, and what a report makes of a run's events."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.events import (
    ErrorHappened,
    Event,
    RequestFinished,
    RequestPreempted,
    RequestSubmitted,
    StepDone,
)
from mlx_spec.metrics import PerformanceLog
from mlx_spec.metrics.distribution import Gaps, Percentiles, bucket, bucket_value
from mlx_spec.metrics.goodput import NO_LIMITS, Goodput, Limits
from mlx_spec.metrics.log_reader import read_logs
from mlx_spec.metrics.summary import RunSummary, summarise
from tests.models import VOCABULARY
from tests.scenario import noisy_draft, target

SPECULATION = SpeculationConfig(num_draft_tokens=4, probe_interval=3)


def step(time: float, emitted: tuple[str, ...] = (), **fields: Any) -> StepDone:
    values: dict[str, Any] = {
        "seconds": 0.5,
        "prefill_seconds": 0.0,
        "prompt_tokens": 0,
        "rows": len(emitted),
        "running": len(emitted),
        "waiting": 0,
        "batch_size": 4,
        "draft_length": 0,
        "tokens": len(emitted),
        "drafted": 0,
        "accepted": 0,
        "memory": 100,
    }
    values = {**values, **fields}
    began = time - values["seconds"] - values["prefill_seconds"]
    return StepDone(**{"time": time, "began": began, "ended": time, "emitted": emitted, **values})


def finished(time: float, request_id: str, **fields: Any) -> RequestFinished:
    values: dict[str, Any] = {
        "reason": "stop",
        "prompt_tokens": 3,
        "generation_tokens": 5,
        "ttft": 1.0,
        "duration": 3.0,
        "queue_time": 0.25,
        "drafted": 0,
        "accepted": 0,
        "verify_steps": 5,
        "reused_tokens": 0,
    }
    return RequestFinished(time=time, request_id=request_id, **{**values, **fields})


# --- distributions ---


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_percentiles_are_numpys(values: list[float]) -> None:
    percentiles = Percentiles.of(values)
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    assert percentiles.count == len(values)
    assert percentiles.most == max(values)
    assert (percentiles.p50, percentiles.p90, percentiles.p99) == pytest.approx((p50, p90, p99))
    assert percentiles.mean == pytest.approx(np.mean(values))


def test_no_values_have_no_percentiles() -> None:
    assert Percentiles.of([]) == Percentiles(0, None, None, None, None, None)


@given(st.floats(1e-6, 1e4))
def test_a_bucket_gives_its_time_back_within_a_percent(seconds: float) -> None:
    assert bucket_value(bucket(seconds)) == pytest.approx(seconds, rel=0.0101)


def test_gaps_are_between_the_times_a_request_gained_tokens() -> None:
    gaps = Gaps()
    assert gaps.of(step(1.0, ("a",))) == []
    assert gaps.of(step(1.5, ("a", "b"))) == [(0.5, 1)]
    assert gaps.of(step(2.0, ("a", "b"))) == [(0.5, 2)]
    assert gaps.of(step(2.25, ("b",))) == [(0.25, 1)]
    assert sorted(gaps.of(step(3.0, ("a", "b")))) == [(0.75, 1), (1.0, 1)]
    gaps.forget("a")
    assert gaps.of(step(4.0, ("a",))) == []


# --- from events to a summary, by way of a log ---


def summary_of(folder: Path, events: Iterable[Event], limits: Limits = NO_LIMITS) -> RunSummary:
    """What a report says of a run with these events."""
    with PerformanceLog(folder, interval=100.0) as log:
        for event in events:
            log(event)
    return summary_in(folder, limits)


def summary_in(folder: Path, limits: Limits = NO_LIMITS) -> RunSummary:
    """What a report says of the one log of a folder."""
    (run,), problems = read_logs(folder)
    assert problems == []
    return summarise(run, limits)


def test_the_summary_of_a_run_by_hand(tmp_path: Path) -> None:
    events = (
        RequestSubmitted(10.0, "a", 3, 5, 0),
        RequestSubmitted(10.0, "b", 3, 5, 0),
        step(11.0, ("a", "b"), tokens=5, drafted=8, accepted=3, draft_length=4),
        step(12.0, ("a",), tokens=1, waiting=1, memory=300),
        RequestPreempted(12.0, "b"),
        finished(12.0, "a"),
        step(14.0, ("b",), seconds=2.0, tokens=2, memory=200),
        finished(14.0, "b", ttft=2.0, duration=4.0, reason="length"),
        finished(14.0, "c", reason="cancelled", ttft=None, generation_tokens=0),
        ErrorHappened(20.0, "submit", "bad"),
    )
    summary = summary_of(tmp_path, events, Limits(ttft=1.5))
    figures = summary.figures
    assert figures["requests"] == "3 (1 cancelled, 1 length, 1 stop)"
    assert (figures["tokens"], figures["busy"]) == ("8", "3.5 s")
    assert figures["throughput"] == f"{8 / 3.5:.1f} tok/s"
    assert (figures["preempted"], figures["errors"]) == ("1", "1")
    assert (figures["acceptance"], figures["tokens a pass"]) == (f"{3 / 8:.1%}", f"{8 / 4:.2f}")
    assert figures["occupancy"] == f"{4 / 3:.1f} of 4 rows"
    assert (summary.ttft.count, summary.ttft.p50) == (2, 1.5)
    assert (summary.tpot.count, summary.tpot.p50) == (2, 0.5)
    assert summary.itl.count == 2
    assert summary.itl.most == pytest.approx(3.0, rel=0.0101)
    # Cancelled ones were not failed by us, nor served.
    assert figures["goodput"] == f"{1 / 3.5:.2f} requests/s (50% within the limits)"


@pytest.mark.parametrize(
    ("ttft", "tpot", "good"),
    [(None, None, 3), (1.0, None, 2), (None, 0.1, 2), (1.0, 0.1, 1), (0.1, None, 0)],
)
def test_goodput_counts_who_meets_both_limits(
    ttft: float | None, tpot: float | None, good: int
) -> None:
    """Limits are met at their own value; one without a first token meets none."""
    latencies: list[tuple[float | None, float | None]] = [
        (1.0, 0.1),
        (0.5, 0.2),
        (2.0, None),
        (None, None),
    ]
    goodput = Goodput.of(latencies, 2.0, Limits(ttft, tpot))
    assert goodput == Goodput(good, good / 4, good / 2)
    assert Goodput.of([], 0.0, Limits(ttft, tpot)) == Goodput(0, 0.0, 0.0)


def test_the_summary_agrees_with_a_real_run(tmp_path: Path) -> None:
    rng = random.Random(1)
    with (
        PerformanceLog(tmp_path) as log,
        BatchedMLXGenerator(
            target("llama"),
            None,
            draft_model=noisy_draft("llama"),
            batching=BatchingConfig(batch_size=3),
            speculation=SPECULATION,
            listeners=[log],
        ) as generator,
    ):
        prompts = [[rng.randrange(VOCABULARY) for _ in range(5)] for _ in range(7)]
        results = generator.generate(prompts, SamplingParams(max_tokens=12))
    summary = summary_in(tmp_path)
    assert summary.figures["tokens"] == str(sum(r.generation_tokens for r in results))
    for name in ("ttft", "queue_time"):
        known = Percentiles.of(getattr(result, name) for result in results)
        found = getattr(summary, name)
        assert found.count == known.count
        assert found.p99 == pytest.approx(known.p99, abs=1e-4)
    # Every further hand-out closes a gap.
    assert summary.itl.count == sum(r.verify_steps - 1 for r in results)
    rows, _, places = summary.figures["occupancy"].removesuffix(" rows").partition(" of ")
    assert 0 < float(rows) <= float(places) == 3
