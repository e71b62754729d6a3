"""Foreign code that raises ends the one request that it was called for, and nothing else."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from mlx_spec import BatchedMLXGenerator, batch_generate
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.events import ErrorHappened, Event, RequestFinished
from tests.scenario import make_jobs, noisy_draft, target
from tests.waiting import PATIENCE

JOBS = make_jobs("llama", False, 8)
# A token that some requests say, at a place that is not their last.
BAD = JOBS[1].expected[len(JOBS[1].expected) // 2]


class Detokenizer:
    """Writes tokens as numbers, all but one."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.last_segment = ""

    def reset(self) -> None:
        if self._where == "reset":
            raise OSError("planted")

    def add_token(self, token: int) -> None:
        if self._where == "add" and token == BAD:
            raise KeyError(token)
        self.last_segment = f"<{token}>"

    def finalize(self) -> None:
        self.last_segment = ""
        if self._where == "finish":
            raise ValueError("planted")


class Tokenizer:
    """A tokenizer whose streams of text fail somewhere."""

    bos_token = None
    has_chat_template = False
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, where: str, only: int | None = None) -> None:
        self._where, self._only, self._opened = where, only, 0

    def encode(self, text: str, **_: Any) -> list[int]:
        return [len(text)]

    @property
    def detokenizer(self) -> Detokenizer:
        self._opened += 1
        failing = self._only is None or self._opened == self._only
        return Detokenizer(self._where if failing else "")


def run(tokenizer: Tokenizer, threaded: bool) -> list[Any]:
    """The scenario's requests over three rows, in the caller's thread or the worker's."""
    prompts = [list(job.prompt) for job in JOBS]
    options = [job.sampling for job in JOBS]
    batching = BatchingConfig(batch_size=3, batch_timeout=0.0)
    speculation = SpeculationConfig(num_draft_tokens=4, probe_interval=3)
    model, draft = target("llama"), noisy_draft("llama")
    if not threaded:
        return list(
            batch_generate(
                model,
                tokenizer,
                prompts,
                draft_model=draft,
                sampling=options,
                batching=batching,
                speculation=speculation,
            ).results
        )
    with BatchedMLXGenerator(
        model, tokenizer, draft_model=draft, batching=batching, speculation=speculation
    ) as generator:
        results = generator.generate(prompts, options, timeout=PATIENCE)
        stats = generator.stats()
        assert stats.running == stats.waiting == 0
    return results


@pytest.mark.parametrize("threaded", [False, True], ids=["stream", "generator"])
def test_a_token_without_text_ends_its_own_request(threaded: bool) -> None:
    results = run(Tokenizer("add"), threaded)
    failed = 0
    for job, result in zip(JOBS, results, strict=True):
        expected = job.expected
        # A stop token is no part of the text: nobody asks for its text.
        stops = job.sampling.stop_token_ids
        if BAD in expected and not (expected[-1] == BAD and BAD in stops):
            expected = expected[: expected.index(BAD)]
            failed += 1
            assert result.finish_reason == "error"
            assert result.error == f"[TextStream] the text of token {BAD}: KeyError({BAD})"
        else:
            assert result.finish_reason in ("stop", "length")
            assert result.error is None
        assert tuple(result.token_ids) == expected
        shown = [token for token in expected if token not in stops]
        assert result.text == "".join(f"<{token}>" for token in shown)
        assert result.accepted <= result.drafted
        assert result.generation_tokens == len(expected)
    assert 1 <= failed < len(JOBS)


@pytest.mark.parametrize("where", ["reset", "finish"])
@pytest.mark.parametrize("threaded", [False, True], ids=["stream", "generator"])
def test_a_text_that_cannot_begin_or_end(where: str, threaded: bool) -> None:
    """The third one that is opened; whose that is depends on the traffic."""
    results = run(Tokenizer(where, only=3), threaded)
    failed = [index for index, result in enumerate(results) if result.error]
    assert len(failed) == 1
    for index, (job, result) in enumerate(zip(JOBS, results, strict=True)):
        if index in failed:
            kept = 0 if where == "reset" else len(job.expected) - 1
            assert result.finish_reason == "error"
            assert "planted" in result.error
            assert tuple(result.token_ids) == job.expected[:kept]
        else:
            assert tuple(result.token_ids) == job.expected


def test_listeners_hear_of_it() -> None:
    events: list[Event] = []
    batch_generate(
        target("llama"),
        Tokenizer("add"),
        [list(JOBS[1].prompt)],
        sampling=JOBS[1].sampling,
        listeners=[events.append],
    )
    (error,) = [event for event in events if isinstance(event, ErrorHappened)]
    assert (error.where, error.request_id) == ("step", "prompt-0")
    assert f"KeyError({BAD})" in error.error
    (finished,) = [event for event in events if isinstance(event, RequestFinished)]
    assert finished.reason == "error"


def test_a_listener_that_raises_is_named_once_and_heard_no_more() -> None:
    calls = []

    def listener(event: Event) -> None:
        calls.append(event)
        if len(calls) == 4:
            raise LookupError("planted")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with BatchedMLXGenerator(target("llama"), None, listeners=[listener]) as generator:
            results = generator.generate(
                [list(job.prompt) for job in JOBS], [job.sampling for job in JOBS]
            )
    assert [tuple(result.token_ids) for result in results] == [job.expected for job in JOBS]
    assert len(calls) == 4
    assert len([w for w in caught if "planted" in str(w.message)]) == 1


def test_what_the_engine_raises_for_a_new_request_is_that_ones_alone() -> None:
    """Whatever it is: the request leaves no trace, and the others go on."""
    with BatchedMLXGenerator(target("llama"), None) as generator:
        running = generator.submit(list(JOBS[0].prompt), JOBS[0].sampling)

        def plant(engine: Any) -> None:
            check = engine.decoder.check

            def failing(sequence: Any) -> None:
                if sequence.prompt == [1, 2, 3]:
                    raise MemoryError("planted")
                check(sequence)

            engine.decoder.check = failing

        generator._worker.post(plant)
        stream = generator.submit([1, 2, 3])
        with pytest.raises(MemoryError, match="planted"):
            stream.result(PATIENCE)
        assert tuple(running.result(PATIENCE).token_ids) == JOBS[0].expected
        again = generator.generate([list(JOBS[2].prompt)], JOBS[2].sampling, timeout=PATIENCE)
        assert tuple(again[0].token_ids) == JOBS[2].expected
        generator.drain(PATIENCE)


def test_an_error_ends_the_iteration_and_is_in_the_result() -> None:
    with BatchedMLXGenerator(target("llama"), Tokenizer("add")) as generator:
        stream = generator.submit(list(JOBS[1].prompt), SamplingParams(max_tokens=30))
        tokens = [chunk.token for chunk in stream]
        result = stream.result(PATIENCE)
    assert result.token_ids == tokens
    assert BAD not in tokens
    assert result.finish_reason == "error"
