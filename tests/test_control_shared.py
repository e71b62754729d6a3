"""What decoders of one pair share, from any thread, and what is each one's own."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.acceptance import AverageAcceptance
from mlx_spec.control.adaptive import AdaptiveDraftLength
from mlx_spec.control.costs import StepCosts
from mlx_spec.control.report import StepWork
from mlx_spec.control.shared import PairMeasurements, measurements_of
from tests.hardware import LINEAR, MEMORY_BOUND, MOST, Hardware, Simulation, make_rows

CONFIG = SpeculationConfig(num_draft_tokens=MOST)


class Model(dict):  # type: ignore[type-arg]
    """Like an mlx module: a dictionary, so not hashable."""


def test_a_pair_is_remembered_while_both_models_live() -> None:
    """Stops costs of another pair, or of models long freed whose ids were used again."""
    target, draft, other = Model(), Model(), Model()
    pair = measurements_of(target, draft)
    pair.costs.record(StepWork(1, 0), 1.0)
    assert measurements_of(target, draft) is pair
    assert measurements_of(target, other) is not pair
    assert measurements_of(draft, target) is not pair
    assert measurements_of(target, draft) is pair
    del draft
    gc.collect()
    for _ in range(100):  # one of these may get the freed draft's place in memory
        assert measurements_of(target, Model()).costs.predict(StepWork(1, 0)) is None


# --- one decoder's own ------------------------------------------------------------------------


def test_decoders_of_one_pair_keep_their_own_length() -> None:
    """Stops two generators that overwrite each other's K: a lone row drafts far, a full batch
    parks, and neither's step changes what the other does.
    """
    pair = PairMeasurements()
    few, many = (AdaptiveDraftLength(CONFIG, pair) for _ in range(2))
    lone = Simulation(few, LINEAR, [0.9], noise=0.02, seed=1)
    full = Simulation(many, LINEAR, [0.9] * 16, noise=0.02, seed=2)
    for _ in range(300):
        lone.steps(1)
        length = few.current
        full.steps(1)
        assert few.current == length
    assert lone.run.usual(100) > 0
    assert full.run.usual(100) == 0
    for simulation in (lone, full):
        _, goodput = LINEAR.best(simulation.chances, MOST)
        assert simulation.run.merit(100) > 0.93 * goodput


def test_a_step_that_is_dropped_takes_back_only_its_own_decoders_choice() -> None:
    """Stops an undo that puts back what another decoder has decided since."""
    pair = PairMeasurements()
    for length, seconds in ((0, 1.0), (2, 1.1)):
        for rows in (1, 8):
            pair.costs.record(StepWork(rows, length), seconds if rows == 1 else 8 * seconds**9)
    few, many = (AdaptiveDraftLength(CONFIG, pair) for _ in range(2))
    many.choose(make_rows(*[99] * 8))
    few.choose(make_rows(99))
    assert (few.current > 0, many.current) == (True, 0)
    length = few.current
    many.forget()
    assert few.current == length


# --- the pair's, known from the first step on ------------------------------------------------


@pytest.mark.parametrize(("count", "chance"), [(1, 0.9), (6, 0.0)])
def test_a_later_decoder_starts_with_what_is_known(count: int, chance: float) -> None:
    """Stops a second call that tries lengths anew: it begins at what the first ended with."""
    pair = PairMeasurements()
    chances = [chance] * count
    run = Simulation(AdaptiveDraftLength(CONFIG, pair), LINEAR, chances, seed=1).steps(300)
    later = AdaptiveDraftLength(CONFIG, pair)
    lengths = [max(later.choose(make_rows(*[99] * count))) for _ in range(2)]
    assert lengths[0] == lengths[1] == later.current
    best, goodput = LINEAR.best(chances, MOST)
    assert LINEAR.goodput(chances, later.current) > 0.95 * goodput, (best, run.usual(100))


def test_short_calls_go_on_learning() -> None:
    """Stops calls that are shorter than the time between two trials from never measuring the
    longer drafts again, which were dear when the machine was busy.
    """
    pair = PairMeasurements()
    busy = Hardware("busy", lambda m: 20.0 * m, lambda b: 1.5)
    Simulation(AdaptiveDraftLength(CONFIG, pair), busy, [0.95], seed=0).steps(300)
    merits = []
    for call in range(220):
        policy = AdaptiveDraftLength(CONFIG, pair)
        simulation = Simulation(
            policy, MEMORY_BOUND, [0.95], new_tokens=lambda _: 32, replace=False, seed=call
        )
        # Up to where the row's end allows no more than short drafts.
        merits.append(simulation.steps(4).merit())
    _, goodput = MEMORY_BOUND.best([0.95], MOST)
    assert sum(merits[200:]) / 20 > 0.9 * goodput


# --- from any thread --------------------------------------------------------------------------


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Callable[[int], None], threads: int = 4) -> None:
    """Run ``work(0..threads - 1)`` side by side; what one raises is raised here."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            raised.append(error)

    running = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if raised:
        raise raised[0]


@pytest.mark.usefixtures("eager_threads")
def test_costs_are_measured_and_read_by_several_threads() -> None:
    """Stops dictionaries that grow while another thread walks over them, and lost measurements."""
    for _ in range(20):
        costs = StepCosts()

        def work(number: int, costs: StepCosts = costs) -> None:
            for i in range(40):
                step = StepWork(1 + (7 * i + number) % 40, (i + number) % 9)
                costs.record(step, 1.0 + i)
                assert costs.predict(step)
                assert costs.count(step)
                costs.predict(StepWork(1 + i, 5))
                assert costs.comparable or i < 9

        in_threads(work)
        assert costs.steps == 4 * 40


class SlowSum(float):
    """A number that lets another thread run while it is added."""

    def __radd__(self, other: float) -> float:
        time.sleep(0)
        return other + float(self)


@pytest.mark.usefixtures("eager_threads")
def test_acceptance_is_counted_by_several_threads() -> None:
    """Stops a step's evidence that another thread's overwrites."""
    together, alone = AverageAcceptance(), AverageAcceptance()

    def work(_: int) -> None:
        for _ in range(20):
            together.add(SlowSum(0.5), SlowSum(1.0))

    in_threads(work)
    for _ in range(4 * 20):
        alone.add(0.5, 1.0)
    assert together.chance == alone.chance


@pytest.mark.usefixtures("eager_threads")
def test_decoders_made_at_once_share_their_pair() -> None:
    """Stops two generators that start together from each measuring for itself."""
    for _ in range(50):
        target, draft = Model(), Model()
        found: list[PairMeasurements] = []

        def work(_: int, pair: Any = (target, draft), found: Any = found) -> None:
            found.append(measurements_of(*pair))

        in_threads(work)
        assert len(set(map(id, found))) == 1
