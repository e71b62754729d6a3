"""The script that decides the defaults, on a machine without Metal and on a pretended Mac."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

import metal_sim
from metal_kernels import _runtime
from scripts import bench_kernels


def test_without_metal_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert bench_kernels.main([]) == 1
    assert "no Metal here" in capsys.readouterr().err


@pytest.mark.skipif(metal_sim.unavailable() is not None, reason=metal_sim.unavailable() or "")
def test_it_measures_every_operation_and_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "defaults.json"
    table.write_text('{"devices": {"another Mac": {"rope": 1.5}}}')
    arguments = ["--small", "--rounds", "1", "--repeats", "1", "--write", "--table", str(table)]
    with metal_sim.installed():
        assert bench_kernels.main(arguments) == 0
    written = json.loads(table.read_text())["devices"]
    assert written.pop("another Mac") == {"rope": 1.5}
    ((device, ratios),) = written.items()
    assert set(ratios) == set(bench_kernels.PAIRS)
    monkeypatch.setattr(_runtime, "defaults_path", lambda: table)
    assert _runtime.read_defaults(device) == ratios
    shown = capsys.readouterr().out
    assert all(f"{name:13} worst {ratio:.3f}" in shown for name, ratio in ratios.items())


@pytest.mark.skipif(metal_sim.unavailable() is not None, reason=metal_sim.unavailable() or "")
@pytest.mark.parametrize("operation", bench_kernels.PAIRS)
def test_both_sides_compute_the_same(operation: str) -> None:
    (shape,) = bench_kernels.SMALL
    with metal_sim.installed():
        ours, theirs = (call() for call in bench_kernels.PAIRS[operation](shape))
    pairs = [(ours, theirs)] if isinstance(ours, mx.array) else zip(ours, theirs, strict=True)
    for one, other in pairs:
        one, other = one.astype(mx.float32), other.astype(mx.float32)
        assert mx.abs(one - other).max() <= 0.02 * mx.abs(other).max()


def test_no_machine_is_in_the_table_that_was_not_measured() -> None:
    """Whoever adds one has run the script there; until then nothing is on by default."""
    table = json.loads(_runtime.defaults_path().read_text())
    for ratios in table["devices"].values():
        assert set(ratios) <= set(bench_kernels.PAIRS)
        assert all(ratio > 0 for ratio in ratios.values())
