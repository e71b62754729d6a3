"""What decoders of one pair share, from any thread, and what is each one's own."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlx_spec.control.acceptance import AverageAcceptance
from mlx_spec.control.shared import PairMeasurements, measurements_of
from scripts.simulated.machines import COMPUTE, FLAT
from scripts.simulated.play import Conditions, SimulatedRow, Simulation
from scripts.simulated.regret import batch, best
from tests.policies import adaptive


class Model(dict):  # type: ignore[type-arg]
    """Like an mlx module: a dictionary, so not hashable."""


def test_a_pair_is_remembered_while_both_models_live() -> None:
    """Stops costs of another pair, or of models long freed whose ids were used again."""
    target, draft, other = Model(), Model(), Model()
    pair = measurements_of(target, draft)
    pair.reading.add(1.0)
    assert measurements_of(target, draft) is pair
    assert measurements_of(target, other) is not pair
    assert measurements_of(draft, target) is not pair
    assert measurements_of(target, draft) is pair
    del draft
    gc.collect()
    for _ in range(100):  # one of these may get the freed draft's place in memory
        assert measurements_of(target, Model()).reading.seconds == 0


# --- one decoder's own ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3, 8))
def test_decoders_of_one_pair_keep_their_own_length(seed: int) -> None:
    """Stops two generators that overwrite each other's lengths: a lone row drafts far, a full batch
    parks, and neither's step changes what the other does.
    """
    pair = PairMeasurements()
    few, many = (adaptive(COMPUTE, pair=pair) for _ in range(2))
    lone = Simulation(few, COMPUTE, batch(1, (0.9,)), Conditions(seed=100 + seed))
    full = Simulation(many, COMPUTE, batch(32, (0.9,)), Conditions(seed=seed))
    for _ in range(200):
        lone.steps(1)
        full.steps(1)
    assert lone.run.usual(30) > 2
    assert full.run.usual(30) == 0
    for simulation, rows in ((lone, 1), (full, 32)):
        assert simulation.run.merit(30) > 0.97 * best(COMPUTE, batch(rows, (0.9,)))


def test_a_step_that_is_dropped_takes_back_only_its_own_decoders_choice() -> None:
    """Stops an undo that puts back what another decoder has decided since."""
    pair = PairMeasurements()
    few, many = (adaptive(FLAT, pair=pair) for _ in range(2))
    rows = [SimulatedRow(99) for _ in range(8)]
    many.choose(rows)
    lengths = few.choose(rows[:1])
    many.forget()
    assert lengths[0] > 0
    assert few.choose(rows[:1]) == lengths


# --- the pair's, known from the first step on ------------------------------------------------


@pytest.mark.parametrize(("count", "chance"), [(1, 0.9), (6, 0.0)])
def test_a_later_decoder_starts_with_what_is_known(count: int, chance: float) -> None:
    """Stops a second call that learns acceptance anew: it begins at what the first ended with."""
    pair, work = PairMeasurements(), batch(count, (chance,))
    Simulation(adaptive(FLAT, pair=pair), FLAT, work, Conditions(seed=1)).steps(200)
    later = Simulation(adaptive(FLAT, pair=pair), FLAT, work, Conditions(seed=2)).steps(3)
    assert later.merit() > 0.97 * best(FLAT, work)


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
            together.add([SlowSum(0.5)] * 12, [SlowSum(1.0)] * 12)

    in_threads(work)
    for _ in range(4 * 20):
        alone.add([0.5] * 12, [1.0] * 12)
    assert together.chance == alone.chance
    assert together.profile == alone.profile


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
