"""The event feed, and what an engine tells it."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_spec.api import batch_generate, stream_batch_generate
from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import InvalidRequest
from mlx_spec.events import (
    EngineStarted,
    ErrorHappened,
    Event,
    EventFeed,
    FirstToken,
    RequestAdmitted,
    RequestFinished,
    RequestPreempted,
    RequestSubmitted,
    StepDone,
)
from tests.models import VOCABULARY
from tests.scenario import make_jobs, noisy_draft, target
from tests.test_metrics import step
from tests.waiting import PATIENCE

SPECULATION = SpeculationConfig(num_draft_tokens=4, probe_interval=3)


# --- the feed ---


def test_a_feed_without_listeners_is_false() -> None:
    assert not EventFeed()
    assert EventFeed([print])


def test_a_listener_that_raises_is_dropped_with_a_warning_and_the_others_hear_on() -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise ValueError("planted")

    feed = EventFeed([broken, heard.append])
    with pytest.warns(RuntimeWarning, match=r"broken failed on StepDone.*planted") as warned:
        feed.publish(step(1.0))
    feed.publish(step(2.0))
    assert len(warned) == 1
    assert [event.time for event in heard] == [1.0, 2.0]


def test_a_dropped_listener_harms_nothing_where_warnings_are_errors(
    recwarn: pytest.WarningsRecorder,
) -> None:
    import warnings

    feed = EventFeed([lambda event: 1 / 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed.publish(step(1.0))
    assert not feed


def test_a_broken_listener_does_not_kill_the_batch() -> None:
    jobs = make_jobs("llama", False, 3)
    with (
        pytest.warns(RuntimeWarning, match="hears no more"),
        BatchedMLXGenerator(target("llama"), None, listeners=[lambda event: 1 / 0]) as generator,
    ):
        results = [generator.submit(list(j.prompt), j.sampling).result(PATIENCE) for j in jobs]
    assert [tuple(r.token_ids) for r in results] == [job.expected for job in jobs]


# --- what the engine tells ---


def test_the_events_of_a_batch_agree_with_its_results() -> None:
    """More requests than rows, with a draft: every figure is told once and none is lost."""
    events: list[Event] = []
    jobs = make_jobs("llama", True, 9)
    batch = batch_generate(
        target("llama"),
        None,
        [list(job.prompt) for job in jobs],
        draft_model=noisy_draft("llama"),
        sampling=[job.sampling for job in jobs],
        speculation=SPECULATION,
        batching=BatchingConfig(batch_size=4),
        listeners=[events.append],
    )
    started = events[0]
    assert isinstance(started, EngineStarted)
    assert set(started.models) == {"target", "draft"}
    assert started.config["batching"]["batch_size"] == 4
    ends = {e.request_id: e for e in events if isinstance(e, RequestFinished)}
    for kind in (RequestSubmitted, RequestAdmitted, FirstToken):
        ids = [e.request_id for e in events if isinstance(e, kind)]
        assert sorted(ids) == sorted(ends)
    submitted = [e.request_id for e in events if isinstance(e, RequestSubmitted)]
    for request_id, result in zip(submitted, batch.results, strict=True):
        end = ends[request_id]
        assert end.reason == result.finish_reason
        assert end.generation_tokens == result.generation_tokens
        assert (end.drafted, end.accepted) == (result.drafted, result.accepted)
        assert (end.queue_time, end.ttft) == (result.queue_time, result.ttft)
        assert end.verify_steps == result.verify_steps
        assert end.tpot in (result.tpot, None)
    steps = [e for e in events if isinstance(e, StepDone)]
    assert sum(s.tokens for s in steps) == batch.stats.generation_tokens
    assert sum(s.drafted for s in steps) == batch.stats.drafted > 0
    assert sum(s.accepted for s in steps) == batch.stats.accepted > 0
    assert sum(s.rows for s in steps) == batch.stats.row_steps
    assert sum(s.prompt_tokens for s in steps) == batch.stats.prompt_tokens
    assert sum(s.seconds for s in steps) == pytest.approx(batch.stats.generation_time)
    assert sum(s.prefill_seconds for s in steps) == pytest.approx(batch.stats.prompt_time)
    assert {s.draft_length for s in steps if s.rows} == set(batch.stats.draft_lengths)
    assert all(s.rows <= s.running <= s.batch_size == 4 for s in steps)
    assert all(s.memory > 0 for s in steps)
    assert max(s.waiting for s in steps) == 5
    assert [e.time for e in events] == sorted(e.time for e in events)


def test_a_preempted_request_is_told_of() -> None:
    events: list[Event] = []
    sampling = SamplingParams(max_tokens=200, ignore_eos=True)
    streams: list[TokenStream] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, FirstToken) and event.request_id == "long":
            # From the worker's own thread, so that it comes before the long one can end.
            short = SamplingParams(max_tokens=2)
            streams.append(generator.submit([4], short, priority=9, request_id="urgent"))

    with BatchedMLXGenerator(
        target("llama"), None, batching=BatchingConfig(batch_size=1), listeners=[listen]
    ) as generator:
        generator.submit([1, 2, 3], sampling, request_id="long").result(PATIENCE)
        generator.drain(60)
    assert [e.request_id for e in events if isinstance(e, RequestPreempted)] == ["long"]
    admitted = [(e.request_id, e.again) for e in events if isinstance(e, RequestAdmitted)]
    assert admitted == [("long", False), ("urgent", False), ("long", True)]
    assert [e.request_id for e in events if isinstance(e, FirstToken)] == ["long", "urgent"]


def test_cancels_and_refusals_are_told_of() -> None:
    events: list[Event] = []
    with BatchedMLXGenerator(target("llama"), None, listeners=[events.append]) as generator:
        with pytest.raises(InvalidRequest):
            generator.submit([VOCABULARY], request_id="bad").result(PATIENCE)
        stream = generator.submit([1], SamplingParams(max_tokens=400), request_id="gone")
        next(stream)
        stream.cancel()
        generator.drain(60)
    errors = [(e.where, e.request_id) for e in events if isinstance(e, ErrorHappened)]
    assert errors == [("submit", "bad")]
    ends = [(e.request_id, e.reason) for e in events if isinstance(e, RequestFinished)]
    assert ends == [("gone", "cancelled")]


def test_a_failing_step_is_told_of() -> None:
    events: list[Event] = []

    class Broken:
        """A policy that gives up at once."""

        def choose(self, rows: Any) -> list[int]:
            raise RuntimeError("planted")

    stream = stream_batch_generate(target("llama"), None, [[1, 2]], listeners=[events.append])
    stream._engine.decoder._stepper.policy = Broken()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="planted"):
        list(stream)
    (error,) = [e for e in events if isinstance(e, ErrorHappened)]
    assert error.where == "step"
    assert "planted" in error.error
