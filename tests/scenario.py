"""One scenario for all exactness tests: more requests than rows, joining and leaving all the time.

``2 B + 1`` requests of different prompt lengths run over B rows; some arrive late, some end by a
stop token in the middle of what the target would say, the others by ``max_tokens``. Expected
outputs come from mlx-lm's own greedy loop, or, when sampling, from our plain decoding at B = 1.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.generate import generate_step

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.sequence import Sequence
from mlx_spec.structured.compiler import guide_of
from tests.architectures import build
from tests.models import FAMILIES, VOCABULARY, make_model
from tests.structures import END, small_tokenizer

GREEDY: dict[str, Any] = {}
FILTERS = (
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 0.8, "min_p": 0.02},
    {"temperature": 1.0},
)


@cache
def target(family: str) -> Any:
    """A family of ``tests.models``, or any architecture of mlx-lm."""
    return _new(family)


def _new(family: str) -> Any:
    return make_model(family) if family in FAMILIES else build(family)


@cache
def noisy_draft(family: str, amount: float = 0.15) -> Any:
    """The target with disturbed weights: agrees with it often, not always."""
    model = _new(family)
    mx.random.seed(99)
    disturbed = [
        (name, value + amount * mx.random.normal(value.shape) * mx.abs(value).mean())
        for name, value in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(disturbed))
    mx.eval(model.parameters())
    return model


@dataclass(frozen=True)
class Job:
    """One request and what must come out of it."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    expected: tuple[int, ...]
    arrival: int


def mlx_lm_greedy(model: Any, prompt: tuple[int, ...], count: int) -> list[int]:
    """What mlx-lm itself says."""
    steps = generate_step(mx.array(prompt), model, max_tokens=count)
    return [int(token) for token, _ in steps][:count]


def plain_alone(
    model: Any,
    prompt: tuple[int, ...],
    sampling: SamplingParams,
    stops: frozenset[int] = frozenset(),
) -> list[int]:
    """Our plain decoding of one request at B = 1."""
    decoder = SpeculativeDecoder(
        model,
        speculation=SpeculationConfig(enabled=False),
        batching=BatchingConfig(batch_size=1),
    )
    sequence = Sequence(list(prompt), sampling, stop_ids=stops)
    constrain(sequence)
    decoder.add([sequence])
    while decoder.busy:
        decoder.step()
    return sequence.tokens


def constrain(row: Sequence) -> None:
    """What a constraint needs, if it has one: a guide, and the token by which it ends."""
    if row.sampling.structure is not None:
        row.guide = guide_of(row.sampling.structure, small_tokenizer())
        row.stop_ids |= {END}


@cache
def make_jobs(family: str, sampled: bool, count: int) -> tuple[Job, ...]:
    """``count`` requests; the first ones of a longer list are those of a shorter one."""
    return tuple(_make_job(family, sampled, index) for index in range(count))


@cache
def _make_job(family: str, sampled: bool, index: int) -> Job:
    rng = random.Random(1000 * index + 7)
    prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 24)))
    options = FILTERS[index % len(FILTERS)] if sampled else GREEDY
    sampling = SamplingParams(max_tokens=rng.randint(3, 30), seed=index, **options)
    if sampled:
        expected = plain_alone(target(family), prompt, sampling)
    else:
        expected = mlx_lm_greedy(target(family), prompt, sampling.max_tokens)
    if index % 3 == 0:  # ends by a stop token that the target says somewhere on the way
        stop = expected[rng.randrange(len(expected))]
        expected = expected[: expected.index(stop) + 1]
        sampling = SamplingParams(
            max_tokens=sampling.max_tokens, seed=index, stop_token_ids=(stop,), **options
        )
    return Job(prompt, sampling, tuple(expected), arrival=rng.randint(0, 12) if index else 0)


def run_jobs(decoder: SpeculativeDecoder, jobs: tuple[Job, ...]) -> list[Sequence]:
    """Run the jobs as they arrive; a late one waits until a row is free."""
    sequences = [
        Sequence(
            list(job.prompt),
            job.sampling,
            stop_ids=frozenset(job.sampling.stop_token_ids),
            index=index,
        )
        for index, job in enumerate(jobs)
    ]
    waiting = sorted(zip(jobs, sequences, strict=True), key=lambda pair: pair[0].arrival)
    step = 0
    while waiting or decoder.busy:
        ready = [sequence for job, sequence in waiting if job.arrival <= step]
        joining = ready[: decoder.free_rows]
        waiting = [pair for pair in waiting if pair[1] not in joining]
        decoder.add(joining)
        decoder.step()
        step += 1
        assert step < 2000, "the batch makes no progress"
    return sequences


def wrong_rows(jobs: tuple[Job, ...], sequences: list[Sequence]) -> list[int]:
    """Requests whose tokens differ from what the target alone says."""
    return [
        index
        for index, (job, sequence) in enumerate(zip(jobs, sequences, strict=True))
        if tuple(sequence.tokens) != job.expected
    ]
