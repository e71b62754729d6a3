"""The life of a request: every step that is allowed, and that no other is."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import mlx_spec
from mlx_spec.batching.engine import Engine
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import IllegalTransition, InvariantError
from mlx_spec.life_cycle import LifeCycle, RequestState
from mlx_spec.sequence import Sequence
from tests.scenario import target

ROOT = Path(mlx_spec.__file__).parent
WAITING, PREFILLING, RUNNING, PREEMPTED, FINISHED, CANCELLED, FAILED = RequestState

METHODS: dict[str, Callable[[LifeCycle], object]] = {
    "admit": lambda request: request.admit(1.0),
    "start": lambda request: request.start(),
    "preempt": lambda request: request.preempt(2.0),
    "finish": lambda request: request.finish("length"),
    "cancel": lambda request: request.cancel(),
    "fail": lambda request: request.fail("planted"),
}
# How to come to a state, and where each method leads from there.
WAYS = {
    WAITING: (),
    PREFILLING: ("admit",),
    RUNNING: ("admit", "start"),
    PREEMPTED: ("admit", "start", "preempt"),
    FINISHED: ("admit", "start", "finish"),
    CANCELLED: ("cancel",),
    FAILED: ("fail",),
}
ALLOWED = {
    (WAITING, "admit"): PREFILLING,
    (PREEMPTED, "admit"): PREFILLING,
    (PREFILLING, "start"): RUNNING,
    (PREFILLING, "preempt"): PREEMPTED,
    (RUNNING, "preempt"): PREEMPTED,
    (RUNNING, "finish"): FINISHED,
    **{(state, "cancel"): CANCELLED for state in (WAITING, PREFILLING, RUNNING, PREEMPTED)},
    **{(state, "fail"): FAILED for state in (WAITING, PREFILLING, RUNNING, PREEMPTED)},
}


def request_in(state: RequestState) -> Sequence:
    request = Sequence([1], request_id="r7")
    for method in WAYS[state]:
        METHODS[method](request)
    assert request.state is state
    return request


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", RequestState, ids=lambda state: state.value)
def test_the_whole_table(state: RequestState, method: str) -> None:
    request = request_in(state)
    if (state, method) in ALLOWED:
        METHODS[method](request)
        assert request.state is ALLOWED[state, method]
    else:
        before = vars(request).copy()
        with pytest.raises(IllegalTransition, match=rf"{method}\] request 'r7' is {state.value}"):
            METHODS[method](request)
        assert vars(request) == before
    assert request.holds_row == (request.state in (PREFILLING, RUNNING))
    assert request.ended == (request.state in (FINISHED, CANCELLED, FAILED))
    assert request.ended == (request.finish_reason is not None)


def test_an_illegal_step_is_a_bug_of_ours() -> None:
    assert issubclass(IllegalTransition, InvariantError)
    with pytest.raises(AttributeError):
        Sequence([1]).state = FINISHED  # type: ignore[misc]


def test_times_are_those_of_the_first_row_and_of_all_rows() -> None:
    request = Sequence([1])
    request.submit(10.0, reserved=5)
    request.admit(12.0, claim=2.0)
    request.preempt(15.0)
    request.admit(20.0, claim=3.0)
    request.start()
    request.emitted(21.0)
    request.emitted(22.0)
    request.preempt(24.0)
    assert (request.arrival, request.admitted, request.claim) == (10.0, 12.0, 3.0)
    assert (request.ran, request.preemptions) == (3.0 + 4.0, 2)
    assert (request.first_token, request.last_token) == (21.0, 22.0)


def test_a_request_is_submitted_once() -> None:
    """Stops one record from standing in two queues."""
    engine = Engine(target("llama"), None)
    request = Sequence([1, 2], SamplingParams(max_tokens=1))
    engine.submit(request)
    with pytest.raises(IllegalTransition, match=r"submit\] request 'prompt-0' was queued before"):
        engine.submit(request)
    while engine.busy:
        engine.step()
    assert request.state is FINISHED
    with pytest.raises(IllegalTransition, match="is finished"):
        engine.submit(request)


@pytest.mark.parametrize("state", [s for s in RequestState if s is not RUNNING])
def test_only_a_running_request_gains_tokens(state: RequestState) -> None:
    request = request_in(state)
    with pytest.raises(IllegalTransition, match="gains 2 tokens"):
        request.extend([1, 2])
    assert request.tokens == []


def test_ends_is_known_before_anything_changes() -> None:
    request = Sequence([1], SamplingParams(max_tokens=4), stop_ids=frozenset({9}))
    request.admit(0.0)
    request.start()
    assert not request.ends([1, 2, 3])
    assert request.ends([1, 2, 3, 4])
    assert request.ends([9, 1])
    assert request.extend([1, 2]) == [1, 2]
    assert request.ends([3, 4])
    assert not request.ends([3])
    assert request.extend([3, 9, 5]) == [3, 9]
    assert (request.state, request.finish_reason) == (FINISHED, "stop")


def test_a_decoder_alone_leads_a_request_through_its_life() -> None:
    decoder = SpeculativeDecoder(target("llama"), batching=BatchingConfig(prefill_step_size=32))
    request = Sequence([1 + i % 7 for i in range(70)], SamplingParams(max_tokens=6))
    states = [request.state]

    def look() -> None:
        if request.state is not states[-1]:
            states.append(request.state)

    decoder.add([request])
    look()
    while not request.tokens:
        decoder.step()
        look()
    decoder.suspend(request, save=True)
    look()
    decoder.step()
    decoder.add([request])
    while decoder.busy:
        look()
        decoder.step()
    look()
    assert states == [WAITING, PREFILLING, RUNNING, PREEMPTED, PREFILLING, RUNNING, FINISHED]
    with pytest.raises(IllegalTransition, match="is finished"):
        decoder.add([request])


def test_an_engine_leads_it_too_and_cancels_in_any_state() -> None:
    """Waiting, being read, decoding and preempted; each leaves nothing behind."""
    batching = BatchingConfig(batch_size=1, prefill_step_size=32)
    for state in (WAITING, PREFILLING, RUNNING, PREEMPTED):
        engine = Engine(target("llama"), None, batching=batching)
        blocker = Sequence([2], SamplingParams(max_tokens=400), priority=9)
        request = Sequence([1 + i % 7 for i in range(70)], SamplingParams(max_tokens=60))
        if state is WAITING:
            engine.submit(blocker)
        engine.submit(request)
        for _ in range(40):
            engine.step()
            if state is PREEMPTED and request.state is RUNNING:
                engine.submit(blocker)
            if request.state is state:
                break
        assert request.state is state
        engine.cancel(request)
        assert (request.state, request.finish_reason) == (CANCELLED, "cancelled")
        engine.cancel(request)  # twice does no harm
        engine.cancel(blocker) if blocker.submitted else None
        assert not engine.busy
        assert engine.decoder.saved_bytes == 0


def test_nobody_else_writes_what_the_life_cycle_owns() -> None:
    owned = {"finish_reason", "claim", "ran", "arrival", "admitted", "preemptions", "submitted"}
    owned |= {"first_token", "last_token", "reserved"}
    for path in ROOT.rglob("*.py"):
        if path.name == "life_cycle.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                assert node.attr not in owned, f"{path}:{node.lineno} writes {node.attr}"
