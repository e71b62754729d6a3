"""Gates of wide passes on a CPU: as good as mlx-lm's, in our passes and nowhere else."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_spec.model import gates
from mlx_spec.model.gates import FEWEST, gated, quick_gates, quicken_gates, silu
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.platform import BlasStatus
from tests.architectures import build
from tests.models import make_model


def test_it_is_silu() -> None:
    """Against 64 bits, from where nothing is left of it to where it is its argument."""
    values = np.concatenate([np.linspace(-90, 90, 20_001), [0.0, -1e-6, 1e-6, -500, 3e38]])
    values = values.astype(np.float32)
    exact = values.astype(np.float64) / (1 + np.exp(-np.maximum(values, -700).astype(np.float64)))
    found = np.array(silu(mx.array(values))).astype(np.float64)
    assert (np.abs(found - exact) <= 7e-7 * np.maximum(np.abs(exact), 1e-3)).all()
    assert np.isnan(np.array(silu(mx.array([mx.nan])))).all()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine where gates are quickened, and the tokens of those that were."""
    seen: list[int] = []
    monkeypatch.setattr(gates, "ensure_blas", lambda: BlasStatus(True, "any", "of this test"))
    monkeypatch.setattr(gates.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(gates, "on_cpu", lambda: True)

    def noting(gate: mx.array) -> mx.array:
        seen.append(gate.size // gate.shape[-1])
        return silu(gate)

    monkeypatch.setattr(gates, "silu", noting)
    return seen


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt_oss"])
def test_wide_passes_are_quickened(name: str, fast: list[int]) -> None:
    """Of experts too; a gate of another kind (gpt-oss's) stays as it is."""
    model = build(name)
    tokens = mx.array([[(7 * i) % 60 for i in range(20)]], mx.int32)
    expected = model(tokens)
    runner = ModelRunner(model, 1)
    runner.pool.acquire(1)
    runner.pool.reserve(40)
    got = runner.forward(Rows(tokens, mx.zeros(1, mx.int32), 20, uniform=True))
    assert mx.allclose(got, expected, atol=1e-4, rtol=1e-4).item()
    assert bool(fast) == (name != "gpt_oss")
    fast.clear()
    model(tokens)  # mlx-lm's own pass
    few = tokens[:, :3]
    runner.forward(Rows(few, mx.array([20], mx.int32), 23, uniform=True))
    assert not [count for count in fast if count < FEWEST]
    if name == "llama":
        assert not fast
        quicken_gates(model)
        assert type(model.layers[0].mlp).__mro__.count(gates._Gating) == 1


def test_other_types_and_slow_machines_are_left_alone(
    fast: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = mx.ones((32, 4), mx.float16)
    with quick_gates():
        assert mx.allclose(gated(wide, wide), nn.silu(wide) * wide).item()
        assert not fast
        gated(wide.astype(mx.float32), wide.astype(mx.float32))
        assert fast == [32]
    monkeypatch.setattr(gates, "ensure_blas", lambda: BlasStatus(False, None, "of this test"))
    model = make_model("llama")
    quicken_gates(model)
    assert not isinstance(model.layers[0].mlp, gates._Gating)
