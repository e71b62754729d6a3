"""Steps do not wait for the host, whatever the traffic: counted, under default settings.

``meter.ahead`` counts the steps whose graph was built while the one before computed. The others
left the device idle for as long as Python takes to build them.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.batching.engine import Engine
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding import stepper as stepper_module
from mlx_spec.decoding import timeline
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.model import pace
from mlx_spec.sequence import Sequence
from tests.models import VOCABULARY
from tests.scenario import noisy_draft, target
from tests.test_long_prompts import INTERLEAVE, Fed, make_decoder, prompt, right

STEPS = 100
TRAFFIC = {"rows that end": (32, (1, 30)), "long prompts": (32, (1200, 1200)), "few": (8, (1, 30))}


class Requests:
    """As many requests as rows, and some more that wait for a row; new ones come as others end."""

    def __init__(self, rows: int, prompts: tuple[int, int], **batching: Any) -> None:
        self.engine = Engine(
            target("llama"),
            None,
            draft_model=noisy_draft("llama"),
            batching=BatchingConfig(batch_size=rows, **batching),
        )
        self.decoder: SpeculativeDecoder = self.engine.decoder
        self.requests: list[Sequence] = []
        self._random = random.Random(5)
        self._rows, self._prompts = rows, prompts

    def step(self) -> None:
        """Submit what is missing, and step."""
        while sum(not request.ended for request in self.requests) < self._rows + 4:
            length = self._random.randint(*self._prompts)
            prompt = [self._random.randrange(VOCABULARY) for _ in range(length)]
            sampling = SamplingParams(max_tokens=self._random.randint(8, 60))
            self.requests.append(Sequence(prompt, sampling, index=len(self.requests)))
            self.engine.submit(self.requests[-1])
        self.engine.step(hurry=True)

    def run(self, steps: int) -> None:
        """So many steps of the device."""
        until = self.decoder.meter.steps + steps
        while self.decoder.meter.steps < until:
            self.step()


@pytest.mark.parametrize("name", TRAFFIC)
def test_at_most_one_step_in_twenty_waits_for_the_host(
    name: str,
) -> None:
    """Before rows lagged by one it was 66%, 91% and 21% of them.

    As where rows cost little (``conftest``): a CPU has nothing else to do while a step is built, so
    there it is dropped wherever building it again takes less than the rows that ended.
    """
    rows, prompts = TRAFFIC[name]
    traffic = Requests(rows, prompts)
    traffic.run(STEPS // 2 if name == "long prompts" else STEPS)
    meter = traffic.decoder.meter
    ended = sum(request.ended for request in traffic.requests)
    assert ended >= (1 if name == "long prompts" else 20), "nobody ended: no traffic"
    assert 1 - meter.ahead / meter.steps <= 0.05


@pytest.mark.parametrize(
    ("cpu", "build", "held"), [(True, 1.0, True), (True, 0.2, False), (False, 0.0, True)]
)
def test_a_cpu_computes_no_more_for_nothing_than_building_again_takes(
    cpu: bool, build: float, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of four rows has ended in a step of two seconds: half a second would be for nothing."""
    monkeypatch.setattr(stepper_module, "rows_cost", lambda: cpu)
    traffic = Requests(4, (1, 30))
    traffic.run(5)
    stepper = traffic.decoder._stepper
    flight = stepper.flight
    assert flight is not None
    assert len(flight.rows) == 4
    stepper._step_seconds, stepper._build_seconds = 2.0, build
    stepper.members.leaving.clear()
    assert stepper.holds(flight)
    stepper.members.leaving.add(flight.rows[1])
    assert stepper.holds(flight) is held
    stepper.members.leaving.add(flight.rows[2])
    assert not stepper.holds(flight), "half of the rows"


def waits(patch: pytest.MonkeyPatch) -> list[str]:
    """Who waits for the device from now on, by the names of functions."""
    callers: list[str] = []

    def watch(place: Any, name: str) -> None:
        right = getattr(place, name)

        def watched(*args: Any) -> Any:
            callers.append(sys._getframe(1).f_code.co_name)
            return right(*args)

        patch.setattr(place, name, watched)

    for name in ("eval", "synchronize"):
        watch(mx, name)
    for name in ("tolist", "item", "__array__", "__bool__", "__int__", "__float__"):
        watch(mx.array, name)
    return callers


@pytest.mark.parametrize("prompts", [(1, 30), (200, 300)], ids=["rows that end", "long prompts"])
def test_nothing_waits_for_the_device_in_secret(
    prompts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only reading a step does, and the markers before it; growing the slots may, rarely. Rows end,
    join, are cancelled, preempted and fed meanwhile, and their beginnings are kept.
    """
    monkeypatch.setattr(timeline, "on_cpu", lambda: False)
    monkeypatch.setattr("mlx_spec.decoding.chunk_queue.on_cpu", lambda: False)
    monkeypatch.setattr(pace.PACE, "_operations", 1e12)  # a fast machine's chunks
    traffic = Requests(8, prompts, block_size=8, prefill_interleave=64)
    traffic.run(30)
    callers = waits(monkeypatch)
    for step in range(40):
        if step % 10 == 3:
            traffic.engine.cancel(next(r for r in traffic.requests if r.holds_row))
        if step in (15, 25):
            traffic.engine.set_batch_size(5 if step == 15 else 8)
        traffic.step()
    assert traffic.engine.scheduler.preempted > 0
    assert callers.count("read") >= 30
    assert {*callers} <= {"read", "wait", "_grow"}
    # Four layers each: rows less and more, and longest requests of small blocks that come and go.
    assert callers.count("_grow") <= 4 * 10


def test_a_wait_in_secret_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the guard."""
    right = Stepper.plan

    def wrong(self: Stepper) -> Any:
        mx.eval(self.parts.state.lengths)
        return right(self)

    traffic = Requests(4, (1, 9))
    traffic.run(5)
    monkeypatch.setattr(Stepper, "plan", wrong)
    callers = waits(monkeypatch)
    traffic.run(5)
    assert "wrong" in callers


def test_who_waits_for_a_row_joins_as_soon_as_a_step_was_dropped() -> None:
    """Two of three rows end in step 5, so step 6 is dropped; who takes their rows is in it."""
    engine = Engine(target("llama"), None, batching=BatchingConfig(batch_size=3))
    for index, tokens in enumerate((5, 5, 12, 7, 7)):
        sampling = SamplingParams(max_tokens=tokens)
        engine.submit(Sequence([1 + index, 2, 3], sampling, index=index))
    while engine.busy:
        engine.step(hurry=True)
    assert engine.decoder.meter.steps == 12


def test_a_step_that_was_dropped_does_not_double_the_share() -> None:
    """A long prompt comes when half of the rows have ended: the call that launches and reads the
    next step feeds once.
    """
    fed = Fed()
    decoder = make_decoder(fed)
    short = [Sequence(prompt(4, i), SamplingParams(max_tokens=6)) for i in range(2)]
    running = Sequence(prompt(5, 3), SamplingParams(max_tokens=60))
    decoder.add([*short, running])
    while not short[0].finish_reason:
        decoder.step()
    assert decoder._stepper.flight is None, "nothing was dropped"
    decoder.add([Sequence(prompt(220, 9), SamplingParams(max_tokens=2))])
    most = 0
    while not running.finish_reason:
        fed.target.clear()
        fed.draft.clear()
        decoder.step()
        most = max(most, sum(fed.target))
        assert sum(fed.draft) <= INTERLEAVE
    assert most == INTERLEAVE
    assert right(running)
