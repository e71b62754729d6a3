"""Before any test module imports mlx: exactness is tested with the BLAS of MLX's own wheel.

Its batched and single rows agree bit for bit, which a fast BLAS does not promise. Subprocesses
inherit the choice; a test that wants a fast BLAS sets its own environment. Ctrl-C is Ctrl-C in
them too: a shell that starts the suite in the background would have it ignored.

``--quick`` leaves out what ``tests/quick.py`` names and the tests marked ``slow``, and of the many
cases of a test marked ``cut`` runs some.
"""

import os
import shutil
import signal
import tempfile
import threading

os.environ["MLX_SPEC_BLAS"] = "off"
# Of commands that tests start; they time their passes once for all.
os.environ["MLX_SPEC_COSTS"] = tempfile.mkdtemp(prefix="mlx-spec-costs-")
# Where servers keep files of callers unless told otherwise.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="mlx-spec-data-")
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.quick import NOT_QUICK


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="without the slow tests, in at most two minutes"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For ``--quick``: what is quick, and of each test marked ``cut(n)`` every n-th case."""
    if not config.getoption("--quick"):
        return
    seen: dict[str, int] = defaultdict(int)
    kept, left_out = [], []
    for item in items:
        cut = item.get_closest_marker("cut")
        name = item.nodeid.partition("[")[0]
        turn, seen[name] = seen[name], seen[name] + 1
        slow = item.get_closest_marker("slow") or (cut and turn % cut.args[0])
        slow = slow or name.removeprefix("tests/").startswith(NOT_QUICK)
        (left_out if slow else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session", autouse=True)
def rows_lag() -> Iterator[None]:
    """Rows are computed once past their ends, as where rows cost little.

    A CPU would drop a step here and keep it there, as its clock says, and a bug of rows that lag
    by one would show now and then. What it does is a test of its own (``test_pipelining``).
    """
    from mlx_spec.decoding import stepper

    own, stepper.rows_cost = stepper.rows_cost, lambda: False
    yield
    stepper.rows_cost = own


@pytest.fixture(scope="session", autouse=True)
def packs_wherever_it_can() -> Iterator[None]:
    """Steps are packed wherever that leaves a token out, whatever it saves: ``test_packed_steps``
    has a test of when it pays."""
    from mlx_spec.control import step_prices

    PAYS.append(step_prices.packing_pays)
    step_prices.packing_pays = lambda *_: True
    yield
    step_prices.packing_pays = PAYS[0]


@pytest.fixture(scope="session", autouse=True)
def nobody_learns_the_pace() -> Iterator[None]:
    """How much of a prompt is read at once does not follow how busy this machine is.

    What is learnt is a test of its own (``test_reading_pace``).
    """
    from mlx_spec.model.reading_pace import ReadingPace

    own, ReadingPace.note = ReadingPace.note, lambda *_, **__: None  # type: ignore[method-assign]
    yield
    ReadingPace.note = own  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def uncompiled() -> Iterator[None]:
    """``mx.compile`` does nothing: on a CPU each compiled function is a run of a C++ compiler."""
    from tests.architecture_runs import not_compiled

    with not_compiled():
        yield


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with a chat template."""
    from tests.chatting import write_talker

    return write_talker(tmp_path_factory.mktemp("models") / "talker")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model without one."""
    from tests.folders import write_folder

    return write_folder(tmp_path_factory.mktemp("models") / "tiny")


PAYS: list[Callable[..., bool]] = []
OWN: list[Callable[..., object]] = []


@pytest.fixture
def own_time(passes_cost_little: None) -> Callable[..., object]:
    """What really times passes."""
    return OWN[0]


@pytest.fixture(autouse=True)
def nothing_known_of_pairs() -> None:
    """What one test's steps have shown of a model is not what the next one's go by: models are
    shared by tests, and how wide passes are padded must not depend on their order."""
    from mlx_spec.control import shared
    from mlx_spec.weak_memo import WeakMemo

    shared._KNOWN = WeakMemo()


@pytest.fixture
def own_reports(passes_cost_little: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports say what steps really took."""
    from mlx_spec.decoding.flight import Flight

    monkeypatch.setattr(Flight, "report", OWN[1])


@pytest.fixture(scope="session", autouse=True)
def passes_cost_little() -> Iterator[None]:
    """Passes of all models cost nearly the same, however many tokens they read, as on a GPU.

    Guesses cost a fiftieth of that. Nothing is timed, nothing kept on disk, and steps are said to
    have taken what was expected: what a test does must not depend on the clock. What is really
    timed, kept and learned are tests of their own (``test_measuring``, ``test_cost_files``,
    ``test_step_prices``).
    """
    from mlx_spec.control.report import StepReport
    from mlx_spec.control.step_prices import DraftPrice
    from mlx_spec.decoding import prices, timed_part
    from mlx_spec.decoding.flight import Flight

    OWN.append(timed_part.PassTimer.time)
    own_report = Flight.report
    OWN.append(own_report)

    class LittlePrice(DraftPrice):
        def line(self, rows: int, most: int, plain: float) -> list[float]:
            return [seconds / 50 for seconds in super().line(rows, most, plain)]

    def report(flight: Flight, accepted: list[int]) -> StepReport:
        said = own_report(flight, accepted)
        seconds = 1e-3 + 1e-6 * said.tokens + 2e-5 * sum(said.passes.values())
        return replace(said, seconds=seconds, reading=0.0)

    def table(self: object, describe: object, order: Iterable[int]) -> dict[int, float]:
        return {tokens: 1e-3 + 1e-6 * tokens for tokens in order}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timed_part.PassTimer, "time", table)
        patch.setattr(prices, "DraftPrice", LittlePrice)
        patch.setattr(Flight, "report", report)
        patch.setattr(timed_part, "kept_costs", lambda lines: None)
        patch.setattr(timed_part, "keep_costs", lambda lines, costs: None)
        patch.setattr(timed_part, "model_lines", lambda *models, part: ())
        yield
    shutil.rmtree(os.environ["MLX_SPEC_COSTS"], ignore_errors=True)


@pytest.fixture(params=["simulator", pytest.param("metal", marks=pytest.mark.metal)])
def gpu(request: pytest.FixtureRequest) -> Iterator[object]:
    """Where Metal kernels run: the simulator, several lane orders and no finding; and a Mac.

    Yields the simulator, or None on the Mac.
    """
    import mlx.core as mx

    import metal_sim

    if request.param == "metal":
        if not mx.metal.is_available():
            pytest.skip("no Metal here")
        yield None
        return
    reason = metal_sim.unavailable()
    if reason is not None:
        pytest.skip(reason)
    with metal_sim.installed(orders=("forward", "reverse", "shuffled:1")) as simulator:
        yield simulator
