"""Which kernels a model runs by default: its own shapes, kept verdicts, and what is bound of it."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

import metal_kernels
import metal_sim
from mlx_spec.cli.doctor_kernels import broken_kernels
from mlx_spec.cli.main import main
from mlx_spec.model import kernel_choice
from mlx_spec.model.kernel_binding import OPERATIONS, bind_operations
from mlx_spec.model.kernel_choice import Book, bind_kernels, chosen, decide, path_of
from mlx_spec.model.kernel_sites import sites_of
from mlx_spec.model.loader import load
from mlx_spec.model.shaped_kernel import ShapedKernel
from tests.models import make_model
from tests.pretended import PretendedMachine, SmallMachine, tried_here
from tests.test_kernel_binding import BOUND, decode, target
from tests.test_shaped_kernel import won

needs_simulator = pytest.mark.skipif(
    metal_sim.unavailable() is not None, reason=metal_sim.unavailable() or ""
)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A pretended Mac with an empty cache folder; ``machine`` is what its trials run on."""
    held: dict[str, Any] = {"machine": PretendedMachine(), "trials": 0}

    def attempt(known: Any, seconds: float, command: Any) -> Any:
        held["trials"] += 1
        return tried_here(known, seconds, held["machine"])

    monkeypatch.setattr(metal_kernels, "available", lambda: True)
    monkeypatch.setattr(kernel_choice, "try_kernels", attempt)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    monkeypatch.setattr(kernel_choice, "machine_name", lambda: "Apple M9, macOS 30, mlx 1")
    return held


@pytest.mark.parametrize("family", BOUND)
def test_a_model_is_asked_for_its_own_shapes(family: str) -> None:
    model = make_model(family)
    classes = [type(module) for _, module in model.named_modules()]
    sites = sites_of(model)
    assert {site.operation for site in sites} == set(BOUND[family])
    assert [type(module) for _, module in model.named_modules()] == classes
    by_name = {site.operation: site for site in sites}
    args, attention = model.args, by_name["attention"]
    assert (attention.q_heads, attention.kv_heads, attention.dtype) == (
        args.num_attention_heads,
        getattr(args, "num_key_value_heads", args.num_attention_heads),
        "float32",
    )
    assert by_name["sample"].width == args.vocab_size
    if family == "qwen3":  # of the residual stream, of queries and of keys
        norms = {(s.width, s.q_heads) for s in sites if s.operation == "rms_norm"}
        assert norms == {
            (args.hidden_size, 1),
            (attention.width, args.num_attention_heads),
            (attention.width, args.num_key_value_heads),
        }


def test_asking_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")

    def computed(*arrays: Any) -> None:
        assert arrays == ([],)  # the caches' arrays, of which there are none yet

    for name in ("eval", "async_eval"):
        monkeypatch.setattr(mx, name, computed)
    assert sites_of(model)


def test_verdicts_are_kept(mac: dict[str, Any]) -> None:
    mac["machine"] = PretendedMachine({"rms_norm": "slow"})
    first = bind_kernels(make_model("llama")).bound
    assert first == {"add_rms_norm": 2, "rope": 2, "attention": 2, "sample": 1}
    assert bind_kernels(make_model("llama")).bound == first
    assert mac["trials"] == 1
    bind_kernels(make_model("llama", head_dim=32))  # other shapes are another question
    assert mac["trials"] == 2
    bind_kernels(make_model("llama"), "reference")
    assert mac["trials"] == 2


def test_another_machine_decides_for_itself(
    mac: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(make_model("llama"))
    monkeypatch.setattr(kernel_choice, "machine_name", lambda: "Apple M9, macOS 30, mlx 2")
    decide(make_model("llama"))
    assert mac["trials"] == 2


@pytest.mark.parametrize(
    "spoil", ["{", "[]", '{"key": "Apple M1", "record": {"verdicts": []}}', "right"]
)
def test_a_file_that_is_no_good_is_tried_anew(spoil: str, mac: dict[str, Any]) -> None:
    known = decide(make_model("llama"))
    file = path_of("Apple M9, macOS 30, mlx 1")
    good = file.read_text()
    file.write_text(good.replace('"right"', '"fine"') if spoil == "right" else spoil)
    with pytest.warns(RuntimeWarning, match=r"is not what was written there \(.*kernels are tried"):
        assert decide(make_model("llama")) == known
    assert (mac["trials"], file.read_text()) == (2, good)
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing half-written


def test_where_nothing_can_be_kept_loading_goes_on(
    mac: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mlx-spec").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="kernels are tried anew"):
        assert bind_kernels(make_model("llama")).bound == BOUND["llama"]


def test_a_wrong_kernel_is_off_and_said_once(mac: dict[str, Any]) -> None:
    mac["machine"] = PretendedMachine({"attention": "wrong", "rope": "raises"})
    with pytest.warns(RuntimeWarning) as said:
        bound = bind_kernels(make_model("llama")).bound
    (one,) = [str(warning.message) for warning in said]
    assert "attention (4/2 x 8, float32): off by 7 times what its type allows" in one
    assert "rope (2 x 8, float32): RuntimeError at 1 x 1: [metal::Device] Unable" in one
    assert set(bound) == {"rms_norm", "add_rms_norm", "sample"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bind_kernels(make_model("llama")).bound == bound


def test_what_time_did_not_suffice_for_is_tried_at_the_next_load(mac: dict[str, Any]) -> None:
    mac["machine"] = PretendedMachine({"rope": "wrong"}, step=0.3)
    with pytest.warns(RuntimeWarning, match="rope .*: off by"):
        bound = bind_kernels(make_model("llama")).bound
    assert bound  # seven steps of some thirty
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is wrong is not said again
        while any(known.left for known in decide(make_model("llama"))):
            assert mac["trials"] < 10
    assert set(bind_kernels(make_model("llama")).bound) == set(BOUND["llama"]) - {"rope"}


def test_without_a_process_to_try_them_in_nothing_is_bound(
    mac: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_choice, "trial_command", lambda: None)
    assert bind_kernels(make_model("llama")).bound == {}


def test_a_model_whose_pass_cannot_be_described_runs_as_it_is(
    mac: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any) -> None:
        raise RuntimeError("no such pass")

    monkeypatch.setattr(kernel_choice, "sites_of", refuse)
    assert bind_kernels(make_model("llama")).bound == {}


def test_loading_by_default_asks_the_machine(
    mac: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the weights take memory, which trials may need."""
    monkeypatch.setattr(
        "mlx_spec.model.loader.materialize", lambda *_, **__: mac.update(before=mac["trials"])
    )
    mac["machine"] = PretendedMachine({name: "slow" for name in OPERATIONS if name != "rms_norm"})
    model, _ = load("demo")
    assert type(model.model.norm).__mro__[2].__name__ == "RMSNorm"
    assert (mac["trials"], mac["before"]) == (1, 1)


def test_all_places_of_an_operation_must_agree(mac: dict[str, Any]) -> None:
    known = decide(make_model("qwen3"))
    norms = [one for one in known if one.site.operation == "rms_norm"]
    assert len(norms) == 3
    assert "rms_norm" in chosen(known)
    from dataclasses import replace

    slow = replace(norms[1], times=tuple((p, t._replace(ratio=1.0)) for p, t in norms[1].times))
    assert "rms_norm" not in chosen([slow if one is norms[1] else one for one in known])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_batch_says_the_same_where_kernels_take_some_shapes(family: str) -> None:
    """Plain passes of one row and drafts of three: some by kernels, some by MLX, all the same."""
    ran: Counter[tuple[str, bool]] = Counter()

    def shaped(name: str) -> ShapedKernel:
        def kernel(*arguments: Any, **options: Any) -> Any:
            ran[name] += 1
            return OPERATIONS[name].reference(*arguments, **options)

        fake: Any = SimpleNamespace(kernel=kernel, name=name)
        return ShapedKernel(fake, won((1, 1), (1, 5), (8, 5)) if name in some else won())

    for some in (set(OPERATIONS), {"norm_rope", "rope"}):
        ran.clear()
        with bind_operations(target(family), {name: shaped(name) for name in OPERATIONS}):
            assert decode(family, 3, sampled=True) == []
        expected = some & set(BOUND[family])
        if family == "qwen3" and "norm_rope" in some:
            expected -= {"rope"}
        assert set(ran) == expected


@needs_simulator
def test_real_kernels_decide_for_themselves_on_the_simulator(
    mac: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: a model's shapes, real kernels tried and bound, a batch that says the same."""
    mac["machine"] = SmallMachine({"rms_norm": "slow"})
    decode("llama", 2)
    with metal_sim.installed() as simulator:
        with bind_kernels(target("llama")) as binding:
            assert set(binding.bound) == set(BOUND["llama"]) - {"rms_norm"}
            simulator.launches.clear()
            assert decode("llama", 2) == []
            ran = {launch.kernel for launch in simulator.launches}
        assert ran == {"attention", "add_rms_norm", "rope"}


@needs_simulator
def test_a_real_kernel_with_a_bug_is_found_and_left_out(
    mac: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mac["machine"] = SmallMachine()
    own = metal_kernels._runtime.read_source

    def planted(file: str) -> str:
        return own(file).replace("at <= position[r]", "at <= position[r] + 1")

    monkeypatch.setattr(metal_kernels._runtime, "read_source", planted)
    with metal_sim.installed(), pytest.warns(RuntimeWarning, match=r"attention .*: off by"):
        bound = bind_kernels(make_model("llama")).bound
    assert set(bound) == set(BOUND["llama"]) - {"attention"}


def test_doctor_shows_what_is_known(
    mac: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--kernels"]) == 0
    assert "nothing was tried yet" in capsys.readouterr().out
    mac["machine"] = PretendedMachine({"attention": "wrong", "rope": "slow"}, step=0.2)
    with pytest.warns(RuntimeWarning, match="off on this machine"):
        bind_kernels(make_model("llama"))
    assert main(["doctor", "--kernels", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["machine"] == "Apple M9, macOS 30, mlx 1"
    assert Path(shown["file"]).exists()
    rows = {(row["operation"], row["rows x new"]): row for row in shown["kernels"]}
    first = rows["rope", "1 x 1"]
    assert (first["right?"], first["ours us"], first["mlx us"]) == ("yes", 150.0, 100.0)
    assert (first["choice"], first["why"]) == ("mlx", "1.50 of MLX's time")
    off = rows["attention", "all"]
    assert (off["right?"], off["choice"], off["dtype"]) == ("no", "mlx", "float32")
    assert off["why"].startswith("off by 7 times")
    assert rows["sample", "1 x 1"]["choice"] == "ours"
    left = [row for row in shown["kernels"] if row["right?"] == "not tried"]
    assert left
    assert all("left for the next load" in row["why"] for row in left)
    assert main(["doctor", "--kernels"]) == 0
    text = capsys.readouterr().out
    assert "Metal kernels on Apple M9" in text
    assert "right?" in text


def test_doctor_tells_of_kernels_that_are_off(
    mac: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also to whoever asked for no table."""

    def shown() -> Any:
        assert main(["doctor", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["kernels_off"]

    assert shown() == []
    mac["machine"] = PretendedMachine({"attention": "wrong"})
    with pytest.warns(RuntimeWarning, match="off on this machine"):
        bind_kernels(make_model("llama"))
    (words,) = shown()
    assert words.startswith("attention (4/2 x 8, float32): off by 7 times")
    assert main(["doctor"]) == 0
    assert "kernel off" in capsys.readouterr().out


def test_doctor_tries_a_model_that_is_named(
    mac: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--kernels", "--model", "demo", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {row["right?"] for row in shown["kernels"]} == {"yes"}
    assert mac["trials"] == 1
    places = {(row["shape"], row["operation"]) for row in shown["kernels"]}
    assert len(Book.open().verdicts) == len(places)


def test_doctor_without_metal_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--kernels"]) == 0
    assert "no Metal here" in capsys.readouterr().out
    assert broken_kernels() is None
    assert main(["doctor", "--kernels", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == []
