"""Rotations whose angles are made once a pass: the module's own numbers, with far fewer of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import rope_utils

from mlx_spec.model import fused_layers, rotations
from mlx_spec.model.attributes import quicken
from mlx_spec.model.kernel_binding import bind_operations
from mlx_spec.model.rotations import share_angles, shared_angles
from mlx_spec.model.runner import ModelRunner, Rows
from tests.models import make_model

KINDS: dict[str, Callable[[], Any]] = {
    "halves": lambda: nn.RoPE(16),
    "slower, of some dims": lambda: nn.RoPE(8, base=1e6, scale=0.25),
    "neighbours": lambda: nn.RoPE(16, traditional=True),
    "neighbours, of some dims": lambda: nn.RoPE(8, traditional=True),
    "frequencies": lambda: rope_utils.Llama3RoPE(16, base=5e5, scaling_config={"factor": 8.0}),
    "yarn": lambda: rope_utils.YarnRoPE(16, scaling_factor=4.0, mscale_all_dim=1),
    "infinite": lambda: rope_utils.ProportionalRoPE(16, 8),
}


class Turning(nn.Module):
    """A model of nothing else."""

    def __init__(self, *ropes: Any) -> None:
        super().__init__()
        self.ropes = list(ropes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_every_bit_is_the_modules_own(kind: str, dtype: mx.Dtype) -> None:
    own, model = KINDS[kind](), Turning(KINDS[kind](), KINDS[kind]())
    share_angles(model)
    for offset in (7, mx.array([1023], mx.int32), mx.array([3, 0, 4099], mx.int32)):
        rows = 3 if isinstance(offset, mx.array) and offset.size == 3 else 1
        for tokens in (1, 5):
            x = mx.random.normal((rows, tokens, 4, 16)).astype(dtype).transpose(0, 2, 1, 3)
            expected = own(x, offset=offset)
            with shared_angles():
                for rope in model.ropes:
                    assert mx.array_equal(rope(x, offset=offset), expected)
            assert mx.array_equal(model.ropes[0](x, offset=offset), expected)


def test_unequal_turns_share_nothing() -> None:
    ropes = [nn.RoPE(16), nn.RoPE(16, base=500.0), nn.RoPE(16, scale=0.5), nn.RoPE(8)]
    ropes += [KINDS["frequencies"](), KINDS["infinite"](), nn.RoPE(16, traditional=True)]
    model = Turning(*ropes)
    x, offsets = mx.random.normal((2, 4, 3, 16)), [mx.array([5, 9]), mx.array([6, 9])]
    expected = [[rope(x, offset=offset) for rope in ropes] for offset in offsets]
    share_angles(model)
    with shared_angles():
        for offset, each in zip(offsets, expected, strict=True):
            for rope, wanted in zip(model.ropes, each, strict=True):
                assert mx.array_equal(rope(x, offset=offset), wanted)
        one = model.ropes[0](x[:, :, :1], offset=offsets[0])  # of fewer tokens
        assert mx.array_equal(one, expected[0][0][:, :, :1])
        half = x.astype(mx.float16)  # of another type
        assert mx.array_equal(
            model.ropes[0](half, offset=offsets[0]), nn.RoPE(16)(half, offset=offsets[0])
        )


def operations(array: mx.array, name: str) -> int:
    """How many of a kind are in the graph of an array."""
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, array)
        return file.read().count(f'label ="{name}"')


def test_a_pass_makes_its_angles_once() -> None:
    model = make_model()
    runner = ModelRunner(model, 2)
    runner.pool.acquire(2)
    runner.pool.reserve(8)
    tokens, starts = mx.array([[1, 2], [3, 4]]), mx.array([0, 1])
    logits = runner.forward(Rows(tokens, starts, 3))
    assert operations(logits, "Cos") == 1 < len(model.layers)
    # Nothing of a pass outlives it, and what is no pass of ours is the module's own.
    assert rotations._TABLES.get() is None
    assert operations(model(tokens), "Cos") == 2 * len(model.layers)


def test_kernels_still_find_what_they_replace() -> None:
    model = Turning(nn.RoPE(16))
    share_angles(model)
    shared = type(model.ropes[0])
    share_angles(model)
    quicken(model)
    assert type(model.ropes[0]) is shared
    turns = fused_layers.rope_options(model.ropes[0])
    assert turns == fused_layers.rope_options(nn.RoPE(16)) is not None
    with bind_operations(model, {"rope": lambda x, *_, **__: x * 0}) as binding:
        assert binding.bound == {"rope": 1}
        with shared_angles():
            assert not mx.any(model.ropes[0](mx.ones((1, 1, 1, 16)), offset=3))
    assert type(model.ropes[0]) is shared
