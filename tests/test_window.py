"""The lines of a log tile time: in order, without overlap, no rate that never was."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.events import Event, StepDone
from mlx_spec.metrics.log_lines import LogLines
from mlx_spec.metrics.log_reader import read_logs
from tests.scenario import noisy_draft, target
from tests.test_metrics import step
from tests.test_report import HEADER, inference, write

# Milliseconds: of a step, of a pause before it (most steps follow at once), until it is told.
durations = st.integers(1, 3000)
pauses = st.one_of(st.just(0), st.integers(1, 2000))
runs = st.lists(
    st.tuples(durations, pauses, st.integers(0, 400), st.integers(0, 100)), min_size=1, max_size=60
)


def steps_of(run: list[tuple[int, int, int, int]]) -> list[StepDone]:
    """Steps as an engine tells them: each begins where the one before ended, or after a pause."""
    steps, now = [], 100.0
    for milliseconds, pause, late, tokens in run:
        began = now + pause / 1e3
        now = began + milliseconds / 1e3
        # Handed out later than it ended, where building the next step took long.
        steps.append(step(now + late / 1e3, began=began, ended=now, tokens=tokens, seconds=0.0))
    return steps


def windows(steps: list[StepDone]) -> list[dict[str, Any]]:
    lines = LogLines({}, origin=0.0, interval=0.5)
    written = [line for event in steps for line in lines.of(event)]
    return [line for line in [*written, *lines.end(1e6, 0)] if line["kind"] == "inference"]


@settings(max_examples=40, deadline=None)
@given(runs)
def test_windows_tile_the_time_of_the_steps(run: list[tuple[int, int, int, int]]) -> None:
    steps = steps_of(run)
    written = windows(steps)
    assert sum(line["tokens"] for line in written) == sum(s.tokens for s in steps)
    fastest = max(s.tokens / (s.ended - s.began) for s in steps)
    end = steps[0].began
    for line in written:
        start = line["t"] - line["seconds"]
        assert line["seconds"] > 0
        assert start >= end - 2e-4  # four digits are written
        # What lies between two windows is a pause, and none of it is lost.
        assert start <= end + 2e-4 or any(abs(s.began - start) < 2e-4 for s in steps)
        assert line["tok_s"] <= fastest + 0.01
        assert line["tok_s"] == pytest.approx(line["tokens"] / line["seconds"], rel=0.06, abs=0.01)
        end = line["t"]
    assert end == pytest.approx(steps[-1].ended, abs=2e-4)
    # The sum is the time of all steps, and the pauses that are too short to count.
    times = sum(s.ended - s.began for s in steps)
    gaps = [b.began - a.ended for a, b in pairwise(steps)]
    short = sum(gap for gap in gaps if gap < 0.5)
    seconds = sum(line["seconds"] for line in written)
    assert times - 1e-3 * len(written) <= seconds <= times + short + 1e-3 * len(written)


@settings(max_examples=40, deadline=None)
@given(runs, runs)
def test_two_engines_under_one_log_overlap_in_no_line(
    one: list[tuple[int, int, int, int]], two: list[tuple[int, int, int, int]]
) -> None:
    steps = sorted([*steps_of(one), *steps_of(two)], key=lambda s: s.time)
    written = windows(steps)
    assert sum(line["tokens"] for line in written) == sum(s.tokens for s in steps)
    for before, line in pairwise(written):
        assert line["t"] - line["seconds"] >= before["t"] - 2e-4
    # A late burst of the other engine's steps counts no time of its own, and still no peak.
    fastest = max(s.tokens / (s.ended - s.began) for s in steps)
    alone = [line for line in written if line["steps"] == 1]
    assert all(line["tok_s"] <= fastest + 0.01 for line in alone)


def test_a_real_run_s_steps_tile_its_time() -> None:
    """Joins and leaves, drafts, steps built ahead; then nothing to do; then more."""
    events: list[Event] = []
    with BatchedMLXGenerator(
        target("llama"),
        None,
        draft_model=noisy_draft("llama"),
        speculation=SpeculationConfig(num_draft_tokens=3),
        batching=BatchingConfig(batch_size=2, prefill_interleave=8),
        listeners=[events.append],
    ) as generator:
        prompts = [[1 + n % 7] * (3 + 5 * n) for n in range(5)]
        generator.generate(prompts, SamplingParams(max_tokens=12))
        first = len(events)
        cancelled = generator.submit([1, 2], SamplingParams(max_tokens=400))
        next(cancelled)
        cancelled.cancel()
        generator.generate(prompts[:1], SamplingParams(max_tokens=12))
    steps = [e for e in events if isinstance(e, StepDone)]
    ends = [s.ended for s in events[:first] if isinstance(s, StepDone)]
    assert all(s.began <= s.ended <= s.time for s in steps)
    assert all(s.seconds + s.prefill_seconds <= s.ended - s.began + 1e-6 for s in steps)
    for before, after in pairwise(steps):
        assert after.began >= before.ended
    # Within a batch nothing lies between two steps.
    assert [s.began for s in steps[1 : len(ends)]] == ends[:-1]
    # The batch had ended before the next request came.
    assert steps[len(ends)].began > ends[-1]


def test_lines_of_before_that_overlap_are_drawn_one_after_the_other(tmp_path: Path) -> None:
    """As written by 0.1 on a slow machine: the second begins within the first."""
    old = [
        inference(3.448, seconds=0.62, decode_seconds=0.62, prefill_seconds=0.0, tok_s=40.0),
        inference(
            3.646, seconds=0.612, decode_seconds=1.0, prefill_seconds=0.2, tok_s=81.7, tokens=50
        ),
    ]
    write(tmp_path / "a.jsonl", HEADER, *old)
    ((run,), problems) = read_logs(tmp_path)
    assert problems == []
    assert [line["start"] for line in run.inference] == [pytest.approx(2.828), 3.448]
    assert [line["tok_s"] for line in run.inference] == [40.0, pytest.approx(50 / 1.2)]
    # The totals stay what they were.
    assert [line["seconds"] for line in run.inference] == [0.62, 0.612]
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1])["tok_s"] == 40.0
