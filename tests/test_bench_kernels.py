"""The developers' script, on a machine without Metal and on a pretended Mac."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

import metal_sim
from metal_kernels.trials.pairs import PAIRS
from scripts import bench_kernels

needs_simulator = pytest.mark.skipif(
    metal_sim.unavailable() is not None, reason=metal_sim.unavailable() or ""
)


def test_without_metal_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert bench_kernels.main([]) == 1
    assert "no Metal here" in capsys.readouterr().err


@needs_simulator
def test_it_measures_every_operation_and_writes_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    arguments = ["--small", "--rounds", "1", "--repeats", "1", "--json", str(file)]
    with metal_sim.installed():
        assert bench_kernels.main(arguments) == 0
    written = json.loads(file.read_text())
    assert [one["operation"] for one in written["results"]] == list(PAIRS)
    shown = capsys.readouterr().out
    for one in written["results"]:
        assert f"{one['operation']:13} worst {one['ratio']:.3f}" in shown
    assert f"written for {written['machine']}" in shown


@needs_simulator
@pytest.mark.parametrize("operation", PAIRS)
def test_both_sides_compute_the_same(operation: str) -> None:
    (site,) = [one for one in bench_kernels.SMALL.sites() if one.operation == operation]
    (point,) = bench_kernels.SMALL_POINTS
    with metal_sim.installed():
        ours, theirs = (call() for call in PAIRS[operation](site, point))
    pairs = [(ours, theirs)] if isinstance(ours, mx.array) else zip(ours, theirs, strict=True)
    for one, other in pairs:
        one, other = one.astype(mx.float32), other.astype(mx.float32)
        assert mx.abs(one - other).max() <= 0.02 * mx.abs(other).max()
