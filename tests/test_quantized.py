"""Quantized weights on the CPU: said to be slow, and made plain with the values that they had."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlx_spec.cli.main import main
from mlx_spec.errors import InvalidRequest
from mlx_spec.model.loader import load
from mlx_spec.model.quantized import dequantize, quantized_bits
from tests.folders import write_folder
from tests.models import make_model

GROUP, BITS = 32, 4
cpu = pytest.mark.skipif(
    mx.default_device().type != mx.DeviceType.cpu, reason="other devices multiply them fast"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with 4-bit weights, as ``mlx_lm.convert -q`` leaves it."""
    path = write_folder(tmp_path_factory.mktemp("quantized") / "model", intermediate_size=64)
    model = make_model("llama", **json.loads((path / "config.json").read_text()))
    model.set_dtype(mx.float16)
    nn.quantize(model, GROUP, BITS)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    config = json.loads((path / "config.json").read_text())
    config["quantization"] = {"group_size": GROUP, "bits": BITS}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_quantized_weights_are_not_quantized_again_and_what_to_do_is_said(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"already, to 4 bits: .* without quantize"):
        load(folder, quantize="8")


@cpu
def test_float32_on_the_cpu_makes_quantized_weights_plain(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = load(folder, dtype="float32")
    assert quantized_bits(model) is None
    saved = mx.load(str(folder / "model.safetensors"))
    assert isinstance(saved, dict)
    for name in ("model.embed_tokens", "model.layers.1.mlp.down_proj", "lm_head"):
        scales, biases = (
            saved[f"{name}.{part}"].astype(mx.float32) for part in ("scales", "biases")
        )
        exact = mx.dequantize(saved[f"{name}.weight"], scales, biases, GROUP, BITS)
        plain = dict(tree_flatten(model.parameters()))[f"{name}.weight"]
        assert plain.dtype == mx.float32
        assert mx.array_equal(plain, exact), name
    assert mx.array_equal(model.model.norm.weight, saved["model.norm.weight"].astype(mx.float32))


@cpu
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_else_they_stay_and_a_warning_says_what_to_do(folder: Path, dtype: str | None) -> None:
    with pytest.warns(RuntimeWarning, match=r"4-bit weights .* CPU; .*--dtype float32") as caught:
        model, _ = load(folder, dtype=dtype)
    assert caught[0].filename == __file__
    assert quantized_bits(model) == BITS


@cpu
def test_plain_and_quantized_say_the_same(folder: Path) -> None:
    tokens = mx.array([[1, 2, 3, 200, 7]])
    with pytest.warns(RuntimeWarning):
        quantized, _ = load(folder)
    plain, _ = load(folder, dtype="float32")
    assert mx.allclose(plain(tokens), quantized(tokens), atol=1e-4)


def test_experts_become_plain_too() -> None:
    model = make_model("qwen3_moe", hidden_size=64, moe_intermediate_size=64)
    nn.quantize(model, GROUP, BITS)
    assert any(isinstance(module, QuantizedSwitchLinear) for module in model.modules())
    before = model(mx.array([[1, 2, 3]]))
    dequantize(model)
    assert any(isinstance(module, SwitchLinear) for module in model.modules())
    assert quantized_bits(model) is None
    assert mx.allclose(model(mx.array([[1, 2, 3]])), before, atol=1e-3)


def test_layers_without_biases_become_plain_too() -> None:
    model = make_model("llama", hidden_size=64, intermediate_size=64)
    nn.quantize(model, 32, 4, mode="mxfp4")
    before = model(mx.array([[1, 2, 3]]))
    dequantize(model)
    assert quantized_bits(model) is None
    assert mx.allclose(model(mx.array([[1, 2, 3]])), before, atol=5e-2, rtol=5e-2)


@cpu
def test_the_command_line_says_it_on_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--model", str(folder), "-p", "abc", "-m", "2", "--verbose", "False"]
    assert main(command) == 0
    assert capsys.readouterr().err.startswith("mlx-spec: warning: 4-bit weights read prompts")
    assert main([*command, "--dtype", "float32"]) == 0
    assert capsys.readouterr().err == ""
