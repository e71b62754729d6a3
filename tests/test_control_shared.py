"""What decoders of one pair share, from any thread, and what is each one's own."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.acceptance import AverageAcceptance
from mlx_spec.control.adaptive import AdaptiveDraftLength
from mlx_spec.control.costs import StepCosts
from mlx_spec.control.report import StepWork
from mlx_spec.control.shared import PairMeasurements, measurements_of
from tests.hardware import LINEAR, MOST, STAIRCASE, Simulation, make_rows

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


def test_a_parked_decoder_tries_again_beside_one_that_drafts() -> None:
    """Stops a wait that starts anew whenever another decoder of the pair changes its length."""
    pair = PairMeasurements()
    lone = Simulation(AdaptiveDraftLength(CONFIG, pair), STAIRCASE, [1.0], noise=0.05, seed=1)
    chances = [0.0] * 8
    full = Simulation(AdaptiveDraftLength(CONFIG, pair), STAIRCASE, chances, noise=0.05, seed=2)

    def both(steps: int) -> None:
        for _ in range(steps):
            lone.steps(1)
            full.steps(1)

    both(300)
    assert full.run.share_drafting(200) < 0.1
    assert lone.run.usual(100) > 0
    chances[:] = [1.0] * 8
    both(300)
    _, goodput = STAIRCASE.best(chances, MOST)
    assert full.run.merit(500) > 0.9 * goodput


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
    lengths beside the one in use.
    """
    pair = PairMeasurements()
    for call in range(60):
        policy = AdaptiveDraftLength(CONFIG, pair)
        options = {"new_tokens": lambda _: 12, "replace": False, "catch_up": 0.0}
        Simulation(policy, LINEAR, [0.9], seed=call, **options).steps(50)  # type: ignore[arg-type]
    best, _ = LINEAR.best([0.9], MOST)
    measured = [length for length in range(MOST + 1) if pair.costs.count(StepWork(1, length))]
    assert {0, best - 1, best, best + 1} <= set(measured)


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


@pytest.mark.usefixtures("eager_threads")
def test_acceptance_is_counted_by_several_threads() -> None:
    """Stops a step's evidence that another thread's overwrites, and a torn pair of numbers."""
    average = AverageAcceptance()

    def work(number: int) -> None:
        for _ in range(500):
            average.fade()
            assert 0.0 <= average.chance <= 1.0

    in_threads(work)
    assert average.untested == 4 * 500


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
