"""Random traffic through one engine, on a clock of its own, and what went wrong in it.

Requests of mixed lengths and priorities arrive over time, some are cancelled, the number of rows
changes, and K/V have room for about three rows: so there are preemptions of both kinds. The same
seed gives the same traffic.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from mlx_spec.batching.engine import Engine
from mlx_spec.batching.memory import STEP_COPIES
from mlx_spec.batching.output import make_result
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding.drafters.predicted import PredictedText
from mlx_spec.errors import MlxSpecError
from mlx_spec.model.support import examine
from mlx_spec.sequence import Sequence
from tests.drafter_runs import edited, kinds, random_head, random_stack
from tests.memory import settled_memory
from tests.models import VOCABULARY
from tests.scenario import Job, constrain, make_jobs, noisy_draft, target

ROWS, REQUESTS, MOST_STEPS = 5, 30, 1500
# Caches of five rows of 80 tokens in target or draft, which are alike: the longest request alone
# takes two. And what choosing tokens takes for three rows, each with a draft of four.
ROOM_ROWS, ROOM_TOKENS = 5, 80
ROOM_CHOOSING = 3 * STEP_COPIES * (4 * 5 * VOCABULARY)


@dataclass
class Arrival:
    """One request: when it comes, how urgent it is, and when its caller loses interest."""

    job: Job
    step: int
    priority: int
    cancelled: int | None


def run_traffic(
    seed: int = 0,
    family: str = "llama",
    requests: int = REQUESTS,
    draft: str | None = None,
    jobs: tuple[Job, ...] = (),
) -> list[str]:
    """Findings, none where all is well; ``jobs`` instead of as many usual ``requests``."""
    rng = random.Random(seed)
    jobs = jobs or make_jobs(family, True, requests)
    plan = [
        Arrival(
            job=job,
            step=rng.randint(0, 60),
            priority=rng.choice([0, 0, 0, 2, 5]),
            cancelled=rng.randint(0, 80) if rng.random() < 0.15 else None,
        )
        for job in jobs
    ]
    steps = 0
    engine = make_engine(lambda: steps * 0.1, family, draft)
    made: dict[int, Sequence] = {}
    findings: list[str] = []
    try:
        while len(made) < len(plan) or engine.busy:
            for number, arrival in enumerate(plan):
                if arrival.step == steps:
                    made[number] = make_sequence(arrival, draft)
                    engine.submit(made[number])
                if arrival.cancelled == steps and number in made:
                    engine.cancel(made[number])
            if rng.random() < 0.1:
                engine.set_batch_size(rng.randint(1, ROWS))
            engine.step()
            findings += look(engine)
            steps += 1
            if steps > MOST_STEPS:
                return [*findings, f"{len(engine.scheduler.waiting)} wait for ever"]
    except (MlxSpecError, KeyError, ValueError) as error:
        return [*findings, f"step {steps}: {error!r}"]
    if not engine.scheduler.preempted:
        findings.append("nothing was preempted: the traffic tests nothing")
    findings += idle(draft or "model", list(made.values()))
    return findings + [text for n, request in made.items() if (text := judge(plan[n], request))]


def idle(draft: str, requests: list[Sequence]) -> list[str]:
    """Drafters that guessed nothing, nothing right or nothing wrong."""
    findings = []
    for name in kinds(draft).split("+"):
        own = [row.drafters[name] for row in requests if name in row.drafters]
        drafted, accepted = sum(of.drafted for of in own), sum(of.accepted for of in own)
        if not accepted or (accepted == drafted) is not (name == "forced"):
            findings.append(f"{name}: {accepted} of {drafted} guesses were right")
    return findings


def make_engine(clock: object, family: str, draft: str | None = None) -> Engine:
    draft_model = given(family, draft)
    room = ROOM_ROWS * examine(target(family)).cost.nbytes(ROOM_TOKENS) + ROOM_CHOOSING
    return Engine(
        target(family),
        None,
        draft_model=draft_model,
        speculation=SpeculationConfig(
            num_draft_tokens=4,
            adaptive=False,
            draft=draft and kinds(draft),
            draft_layers=(0,) if draft == "self" else None,
        ),
        batching=BatchingConfig(
            batch_size=ROWS,
            batch_timeout=0.3,
            memory_limit=settled_memory() + room,
            aging=2.0,
        ),
        clock=clock,  # type: ignore[arg-type]
    )


def given(family: str, draft: str | None) -> Any:
    """The draft model or head that is needed."""
    heads = {"head": random_head, "stack": random_stack}
    return heads[draft]() if draft in heads else noisy_draft(family)


def make_sequence(arrival: Arrival, draft: str | None) -> Sequence:
    sampling = arrival.job.sampling
    stops = frozenset(sampling.stop_token_ids)
    prompt = list(arrival.job.prompt)
    row = Sequence(prompt, sampling, stop_ids=stops, priority=arrival.priority)
    constrain(row)
    if draft is not None and "predicted" in draft:
        row.prediction = PredictedText(edited(arrival.job.expected))
    return row


def look(engine: Engine) -> list[str]:
    """What must hold after every step."""
    running, kv = engine.scheduler.running, engine.memory.budget.kv
    findings = []
    if len(running) > engine.limit.rows:
        findings.append(f"{len(running)} run, {engine.limit.rows} rows")
    # What a step takes for each row is promised too.
    verified = sum(1 + request.guesses for request in running)
    held = engine.kv_usage().total + verified * kv.token_bytes
    if held > kv.limit:
        findings.append(f"{held} bytes of K/V and of a step, {kv.limit} allowed")
    return findings


def judge(arrival: Arrival, request: Sequence) -> str | None:
    """Why a request came out wrong, if it did."""
    result, expected = make_result(request), arrival.job.expected
    said = tuple(result.token_ids)
    if result.finish_reason == "cancelled":
        expected = expected[: len(said)]
        if arrival.cancelled is None:
            return "cancelled by nobody"
    return None if said == expected else f"{said} instead of {expected}"
