"""Ahead and in turn say the same, and the timeline tells works apart."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding import drivers, timeline
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.decoding.drafters.none import NoDraft
from mlx_spec.decoding.rules import LogitsRule, RuleContext
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.decoding.timeline import Timeline
from mlx_spec.life_cycle import RequestState
from mlx_spec.model.pace import Chunk
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.scenario import Job, make_jobs, noisy_draft, run_jobs, target
from tests.test_rules import NotTwice, NotTwiceOnHost
from tests.toys.repeat_drafter import HostRepeatDrafter

ROWS = 4


@cache
def jobs() -> tuple[Job, ...]:
    """Greedy and sampling rows in turn."""
    greedy, sampled = (make_jobs("llama", kind, 2 * ROWS + 1) for kind in (False, True))
    return tuple(sampled[i] if i % 2 else greedy[i] for i in range(2 * ROWS + 1))


class LookupDrafter(BaseDrafter):
    """On the host: what followed the last token when it was said before, as far as that goes."""

    needs_host = True

    def propose(self, context: DraftContext, count: int) -> Draft:
        guesses, counts = [], []
        for row in context.sequences:
            text = row.known(0, row.length)
            places = [i for i, token in enumerate(text[:-1]) if token == text[-1]]
            found = text[places[-1] + 1 :][:count] if places else []
            guesses.append(found + [0] * (count - len(found)))
            counts.append(len(found))
        return Draft(mx.array(guesses, mx.int32).reshape(-1, count), mx.array(counts, mx.int32))


def said(debug: bool = False, **options: Any) -> tuple[list[list[int]], SpeculativeDecoder]:
    batching = BatchingConfig(batch_size=ROWS, prefill_step_size=16, prefill_interleave=4)
    decoder = SpeculativeDecoder(target("llama"), batching=batching, debug=debug, **options)
    return [sequence.tokens for sequence in run_jobs(decoder, jobs())], decoder


@pytest.mark.parametrize("drafter", ["none", "repeat", "lookup", "model"])
@pytest.mark.parametrize("ruled", [False, True])
def test_in_turn_says_what_ahead_says(drafter: str, ruled: bool) -> None:
    """A host drafter, a host rule or both, against plain steps with the rule on the device."""
    given: Any = {"none": NoDraft, "repeat": HostRepeatDrafter, "lookup": LookupDrafter}
    options: dict[str, Any] = {"rules": [NotTwiceOnHost()] if ruled else []}
    if drafter == "model":
        options["draft_model"] = noisy_draft("llama")
    else:
        options["drafter"] = given[drafter]()
    rules: list[LogitsRule] = [NotTwice()] if ruled else []
    plain, ahead = said(rules=rules)
    assert ahead.meter.ahead > 0
    policy = None if drafter == "none" else RaggedPolicy()
    tokens, decoder = said(policy=policy, debug=not ruled, **options)
    host = ruled or drafter in ("repeat", "lookup")
    assert (decoder.meter.ahead == 0) is host
    assert tokens == plain
    if drafter != "none":
        assert decoder.meter.drafted > 0


class SometimesDrafter(LookupDrafter):
    """Looks at the host in some steps only; in the others it has nothing to say."""

    needs_host = False
    asked = (0, 0)  # how often it was asked ahead, and in turn

    def covers(self) -> list[bool] | None:
        turn = sum(self.asked) // 5 % 2 == 1
        self.needs_host = turn
        return None

    def propose(self, context: DraftContext, count: int) -> Draft:
        if context.known is None or not self.needs_host:
            self.asked = (self.asked[0] + 1, self.asked[1])
            return Draft(mx.zeros((len(context.sequences), 0), mx.int32))
        self.asked = (self.asked[0], self.asked[1] + 1)
        draft = super().propose(context, count)
        assert draft.counts is not None
        lengths = [int(one) for one in draft.counts.tolist()]  # type: ignore[union-attr,arg-type]
        return Draft(draft.tokens, lengths=lengths)


def test_a_drafter_may_need_the_host_now_and_then() -> None:
    plain, _ = said()
    drafter = SometimesDrafter()
    tokens, decoder = said(drafter=drafter, policy=RaggedPolicy())
    assert tokens == plain
    assert 0 < decoder.meter.ahead < decoder.meter.steps
    assert min(drafter.asked) > 0
    assert decoder.meter.drafted > 0


class ForOddRows(NotTwiceOnHost):
    """A rule for some rows only, which the others' steps pass by."""

    def concerns(self, sequences: Seq[Sequence]) -> bool:
        return any(row.index % 4 == 1 for row in sequences)

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        ruled = super().apply(logits, context)
        own = mx.array([row.index % 4 == 1 for row in context.sequences])
        return mx.where(own[:, None, None], ruled, logits)


@pytest.mark.parametrize("drafter", ["none", "model"])
def test_steps_are_in_turn_while_a_row_needs_it(drafter: str) -> None:
    """A row with a rule on the host comes and goes; each row says what it says by itself."""
    options = {"draft_model": noisy_draft("llama"), "policy": RaggedPolicy()}
    tokens, decoder = said(rules=[ForOddRows()], **(options if drafter == "model" else {}))
    plain, _ = said()
    ruled, _ = said(rules=[NotTwice()])
    expected = [(ruled if i % 4 == 1 else plain)[i] for i in range(len(plain))]
    assert tokens == expected
    assert plain != expected
    assert 0 < decoder.meter.ahead < decoder.meter.steps


@pytest.mark.parametrize("host", [False, True], ids=["ahead", "in turn"])
def test_rows_that_come_and_go_while_their_step_is_in_flight(host: bool) -> None:
    """Cancelled, and preempted with their K/V kept or not, some back before that step is read; the
    debug mode looks at every row after every step.
    """
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=noisy_draft("llama"),
        policy=RaggedPolicy(),
        rules=[NotTwiceOnHost() if host else NotTwice()],
        batching=BatchingConfig(batch_size=ROWS, prefill_interleave=4),
        debug=True,
    )
    sequences = [Sequence([1 + i] * (5 + i), SamplingParams(max_tokens=40)) for i in range(ROWS)]
    cancelled = sequences[1]
    decoder.add(sequences)
    away: list[Sequence] = []
    turn = 0
    while decoder.busy or away:
        turn += 1
        decoder.step()
        decoder.add(away)
        away.clear()
        row = sequences[turn % ROWS]
        if turn == 20:
            cancelled.cancel()
            decoder.remove(cancelled)
        elif turn % 3 == 0 and row.state is RequestState.RUNNING:
            decoder.suspend(row, save=turn % 2 == 0)
            if turn % 4 == 0:
                decoder.add([row])  # in its slot again before the step is read
            else:
                away.append(row)
    for sequence in sequences:
        lone = SpeculativeDecoder(target("llama"), rules=[NotTwice()])
        alone = Sequence(sequence.prompt, sequence.sampling)
        lone.add([alone])
        while lone.busy:
            lone.step()
        assert sequence.tokens == alone.tokens[: len(sequence.tokens)]
        assert len(sequence.tokens) == 40 or sequence is cancelled
    assert 0 < len(cancelled.tokens) < 40


def test_ctrl_c_while_a_step_is_waited_for_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step stays in flight, and the one that was built on it is forgotten."""
    right, calls = Timeline.wait, 0

    def interrupted(self: Timeline) -> bool:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise KeyboardInterrupt
        return right(self)

    options: dict[str, Any] = {"policy": RaggedPolicy(), "draft_model": noisy_draft("llama")}
    decoder = SpeculativeDecoder(target("llama"), batching=BatchingConfig(batch_size=3), **options)
    jobs_of = make_jobs("llama", True, 3)
    sequences = [
        Sequence(list(job.prompt), job.sampling, stop_ids=frozenset(job.sampling.stop_token_ids))
        for job in jobs_of
    ]
    decoder.add(sequences)
    for _ in range(4):
        decoder.step()
    monkeypatch.setattr(Timeline, "wait", interrupted)
    monkeypatch.setattr("mlx_spec.decoding.chunk_queue.on_cpu", lambda: False)
    interrupts = 0
    while decoder.busy:
        try:
            decoder.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 1
    assert [tuple(sequence.tokens) for sequence in sequences] == [job.expected for job in jobs_of]


def test_the_host_looks_at_the_draft_while_the_target_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are launched before a rule sees the draft; tokens are chosen after it."""
    order: list[str] = []

    def note(place: Any, name: str) -> None:
        right = getattr(place, name)

        def noted(*args: Any, **more: Any) -> Any:
            order.append(name)
            return right(*args, **more)

        monkeypatch.setattr(place, name, noted)

    note(NotTwiceOnHost, "see")
    note(drivers, "choose")
    note(mx, "async_eval")
    for name in ("show", "read"):
        note(Stepper, name)
    said(rules=[NotTwiceOnHost()], draft_model=noisy_draft("llama"))
    start = order.index("show")
    step = order[start : order.index("show", start + 1)]
    assert step[:4] == ["show", "async_eval", "see", "choose"]
    assert "read" in step


# --- the timeline --------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when the device is waited for."""

    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


def chunk(heard: list[float]) -> Chunk:
    return Chunk([[mx.zeros((1, 2, 3, 4))]], 5, lambda made: heard.append(made.seconds))


def test_works_are_timed_from_the_end_of_the_work_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launched together at 10; the chunks are done at 13 and 17, the step at 18."""
    clock, heard = Clock(), list[float]()
    works = Timeline(clock)
    ends = iter([13.0, 17.0])
    monkeypatch.setattr(timeline, "on_cpu", lambda: False)
    monkeypatch.setattr(timeline.mx, "eval", lambda marker: setattr(clock, "now", next(ends)))
    works.add(chunk(heard), 10.0)
    works.add(chunk(heard), 10.5)
    assert works.wait()
    clock.now = 18.0
    assert works.finish(11.0) == 1.0
    assert heard == [3.0, 4.0]
    clock.now = 30.0  # nothing was on the device from 18 to 25
    assert works.finish(25.0) == 5.0


def test_a_chunk_that_was_done_before_anybody_looked_times_nothing_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, heard = Clock(), list[float]()
    works = Timeline(clock)
    monkeypatch.setattr(timeline, "on_cpu", lambda: False)
    works.add(chunk(heard), 9.0)
    assert not works.wait()
    assert heard == [1.0]
    assert works.wait()  # nothing to wait for: the step's own launch counts


def test_a_step_s_seconds_hold_no_reading(own_reports: None) -> None:
    """Prompts and the drafter's reading are told apart from the step: their sum is all there is."""
    reports: list[Any] = []

    class Noting(RaggedPolicy):
        def choose(self, rows: Any) -> list[int]:
            return [2] * len(rows)

        def observe(self, report: Any) -> None:
            reports.append(report)

    batching = BatchingConfig(batch_size=2, prefill_interleave=64)
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=noisy_draft("llama"),
        policy=Noting(),
        batching=batching,
    )
    decoder.add([Sequence([1, 2, 3], SamplingParams(max_tokens=60))])
    for _ in range(3):
        decoder.step()
    decoder.add([Sequence([5, 6] * 200, SamplingParams(max_tokens=20))])
    before, started = decoder.meter.prompt_seconds, decoder._stepper.clock()
    reports.clear()
    while decoder.busy:
        decoder.step()
    busy = decoder._stepper.clock() - started
    reading = [report.reading for report in reports if report.reading]
    assert len(reading) >= 6  # 400 tokens, 64 at once
    prompts = decoder.meter.prompt_seconds - before
    assert prompts > 0
    # The first step reported here was launched before the clock was looked at.
    assert prompts + sum(reading) + sum(r.seconds for r in reports[1:]) <= busy * 1.001
    assert all(report.seconds > 0 and report.clean for report in reports)
