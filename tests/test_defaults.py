"""What is switched on does happen: default settings, ordinary traffic, no knob turned for a test.

A batch that never holds two rows, a draft that is never tried or steps that are never built ahead
would pass every test of outputs.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest

from mlx_spec import batch_generate, load
from mlx_spec.batching.engine import Engine
from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.control.ends import Ends
from mlx_spec.control.surest import Surest
from mlx_spec.decoding import setup
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.events import Event, RequestFinished
from mlx_spec.model.pace import Pieces, on_cpu
from mlx_spec.results import GenerationResult
from mlx_spec.sequence import Sequence
from tests.caches import dense_pool
from tests.models import make_model
from tests.scenario import make_jobs, mlx_lm_greedy, noisy_draft, plain_alone, target
from tests.waiting import PATIENCE

PROMPTS = ["def read_", "import ", "class Stack:\n    ", "for i in range(", "x = ", "def parse("]
NEW = 24


@cache
def demo(name: str) -> Any:
    return load(name)


def sampling(number: int) -> SamplingParams:
    """Greedy ones and sampling ones side by side; all of one length, as benchmarks have them."""
    return SamplingParams(max_tokens=NEW, temperature=0.7 * (number % 2), seed=number)


@pytest.fixture(scope="module")
def traffic() -> tuple[StepMeter, list[GenerationResult]]:
    """Every setting its default."""
    return served()


def served() -> tuple[StepMeter, list[GenerationResult]]:
    """Four requests, and two more while those run, with the embedded pair."""
    model, tokenizer = demo("demo")
    engines: list[Engine] = []
    streams: list[TokenStream] = []
    with BatchedMLXGenerator(model, tokenizer, draft_model=demo("demo-draft")[0]) as generator:
        generator._worker.post(engines.append)
        for number, prompt in enumerate(PROMPTS):
            if number == 4:
                for _ in range(5):
                    next(streams[0])
            streams.append(generator.submit(prompt, sampling(number)))
        results = [stream.result(120) for stream in streams]
    return engines[0].decoder.meter, results


def test_texts_are_those_of_the_target_alone(traffic: Any) -> None:
    model, tokenizer = demo("demo")
    for number, (prompt, result) in enumerate(zip(PROMPTS, traffic[1], strict=True)):
        tokens = tuple(tokenizer.encode(prompt))
        alone = plain_alone(model, tokens, sampling(number))
        assert list(result.token_ids) == alone[: len(result.token_ids)]
        assert len(result.token_ids) == NEW or result.finish_reason == "stop"


def test_rows_share_steps(traffic: Any) -> None:
    meter = traffic[0]
    assert meter.row_steps / meter.steps > 2


def test_drafts_are_tried_and_accepted(traffic: Any) -> None:
    """How many depends on what steps cost here; the pair agrees, so of those tried most count."""
    results = traffic[1]
    assert sum(result.drafted for result in results) > 0
    assert sum(result.accepted for result in results) > 0
    assert all(result.accepted <= result.drafted for result in results)


def test_most_steps_are_built_while_the_one_before_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All but those after a change of rows: three joins and the ends; no luck is in it. As on a
    GPU: a CPU, which has nothing else to do meanwhile, reads how sure the draft is in between."""
    monkeypatch.setattr(setup, "on_cpu", lambda: False)
    meter, results = served()
    assert meter.ahead / meter.steps > 0.5
    assert sum(result.accepted for result in results) > 0


@pytest.mark.skipif(not on_cpu(), reason="only a CPU reads it")
def test_on_a_cpu_guesses_are_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    picked: list[int] = []
    own = Surest.pick

    def pick(surest: Surest, rows: Any, *more: Any) -> list[int]:
        picked.append(len(rows))
        return own(surest, rows, *more)

    monkeypatch.setattr(Surest, "pick", pick)
    meter, _ = served()
    assert len(picked) > 0.3 * meter.steps
    assert max(picked) > 1


@pytest.mark.parametrize("draft", ["ngram", "model"])
def test_rows_that_end_last_count_most_once_nobody_waits(
    draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops an engine that does not tell its decoder who waits, and a drafter that is not asked."""
    model, tokenizer = demo("demo")
    asked: list[tuple[int, bool]] = []
    own, admit = Ends.weights, Engine._admit
    waiting: list[int] = []

    def weights(ends: Ends, rows: Any, *more: Any) -> Any:
        found = own(ends, rows, *more)
        if len(rows) > 1:
            asked.append((waiting[-1], found is not None))
        return found

    def admitted(engine: Engine, hurry: bool) -> None:
        admit(engine, hurry)
        waiting.append(engine.scheduler.backlog)

    monkeypatch.setattr(Ends, "weights", weights)
    monkeypatch.setattr(Engine, "_admit", admitted)
    made = batch_generate(
        model,
        tokenizer,
        ["x = 1\nx = 1\nx = 1\n", "import os\nimport os\n", "import ", "a = 1\na = 1\na = 1\n"] * 2,
        draft_model=demo("demo-draft") if draft == "model" else None,
        speculation=SpeculationConfig(draft=draft),
        batching=BatchingConfig(batch_size=3),
        max_tokens=NEW,
    )
    assert made.stats.drafted > 0
    assert {found for count, found in asked if count} == {False}
    assert True in {found for count, found in asked if not count}


def test_requests_that_come_while_others_run_are_news() -> None:
    """Stops an engine that counts none: a server would take each of its batches for the last."""
    model, tokenizer = demo("demo")
    engine = Engine(
        model,
        tokenizer,
        speculation=SpeculationConfig(draft="ngram"),
        batching=BatchingConfig(batch_size=6),
    )

    def weights() -> list[float] | None:
        ends, rows = engine.decoder.policy._ends, engine.decoder.running
        assert len(rows) > 1
        return ends.weights(rows, [0.0] * len(rows), 2.0, 1.9)

    def submit(count: int) -> None:
        for number in range(count):
            prompt = tokenizer.encode(PROMPTS[number])
            engine.submit(Sequence(prompt, SamplingParams(max_tokens=NEW, ignore_eos=True)))

    submit(2)
    for _ in range(6):
        engine.step(hurry=True)
    assert weights() is not None
    submit(3)
    for _ in range(2):
        engine.step(hurry=True)
    assert engine.scheduler.backlog == 0
    assert weights() is None


def test_two_generators_at_once_say_what_each_says_alone() -> None:
    """Two threads over the same weights, with drafts; nothing global is shared between engines."""
    jobs = make_jobs("llama", True, 12)
    models = {"draft_model": noisy_draft("llama"), "batching": BatchingConfig(batch_size=4)}
    target("llama")
    with (
        BatchedMLXGenerator(target("llama"), None, **models) as one,
        BatchedMLXGenerator(target("llama"), None, **models) as two,
    ):
        streams = [
            (one, two)[number % 2].submit(list(job.prompt), job.sampling)
            for number, job in enumerate(jobs)
        ]
        said = [tuple(stream.result(120).token_ids) for stream in streams]
    assert said == [job.expected for job in jobs]


def test_a_listener_hears_in_the_worker_s_thread_and_may_submit_from_there() -> None:
    """Submitting neither waits for a step nor holds what a step needs, so nothing hangs."""
    heard: list[str] = []
    more: list[TokenStream] = []
    third = threading.Event()

    def listen(event: Event) -> None:
        heard.append(threading.current_thread().name)
        if isinstance(event, RequestFinished) and len(more) < 3:
            more.append(generator.submit([2, 3], SamplingParams(max_tokens=5)))
            if len(more) == 3:
                third.set()

    with BatchedMLXGenerator(target("llama"), None, listeners=[listen]) as generator:
        first = generator.submit([2, 3], SamplingParams(max_tokens=5)).result(PATIENCE)
        assert third.wait(60)
        said = [stream.result(PATIENCE).token_ids for stream in more]
    assert said == [first.token_ids] * 3
    assert set(heard) == {"mlx-spec"}


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 1.0}])
def test_a_vocabulary_as_large_as_those_of_today(options: dict[str, Any]) -> None:
    """151,936 tokens: rows of a batch, with a draft, say what the target says alone."""
    model, draft = (
        make_model(
            "llama", seed, vocab_size=151_936, hidden_size=8, num_hidden_layers=1, head_dim=2
        )
        for seed in (0, 0)
    )
    prompts = [[151_935, 3], [7] * 5, [100_000, 2, 150_000]]
    params = [SamplingParams(max_tokens=6, seed=number, **options) for number in range(3)]
    with BatchedMLXGenerator(
        model,
        None,
        draft_model=draft,
        speculation=SpeculationConfig(num_draft_tokens=2, adaptive=False),
    ) as generator:
        streams = [generator.submit(p, s) for p, s in zip(prompts, params, strict=True)]
        results = [stream.result(120) for stream in streams]
    assert sum(result.accepted for result in results) > 0
    for prompt, given, result in zip(prompts, params, results, strict=True):
        tokens = tuple(prompt)
        alone = plain_alone(model, tokens, given) if options else mlx_lm_greedy(model, tokens, 6)
        assert list(result.token_ids) == alone
    assert max(token for result in results for token in result.token_ids) > 2**16


def test_a_server_s_thousandth_prompt_is_fed_as_its_first() -> None:
    """The number of layers that are computed at once adapts; on a fast machine it must not grow
    without end (600 fast passes once made it infinite, and the next prompt failed).
    """
    pool = dense_pool(2, 1)
    pieces = Pieces(pool)
    for _ in range(600):
        pieces.start()
        assert pieces.compute(None)
    assert pieces.left == 0
