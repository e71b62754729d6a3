"""How a model is loaded: one object behind ``load`` and the flags, checked where it is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_spec import LoadConfig, WeightQuantization, load
from mlx_spec.cli.main import main
from mlx_spec.errors import InvalidRequest, ModelLoadError
from mlx_spec.load_config import LoadOptions, parse_overrides
from mlx_spec.model.context import context_length
from mlx_spec.pipeline.flags import Flags
from tests.folders import CONTEXT, write_folder

TOKENS = mx.array([[(5 * i) % 250 for i in range(40)]])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "good", hidden_size=64)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"dtype": 3},
        {"quantize": 7},
        {"quantize": "4:48"},
        {"quantize": "four"},
        {"quantize": -4},
        {"quantize": "4:32:2"},
        {"config_overrides": ["a"]},
        {"config_overrides": {"": 1}},
        {"config_overrides": {"a..b": 1}},
        {"gguf_requantize": "3bit"},
    ],
)
def test_a_bad_value_is_refused_where_it_is_written(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=rf"\[LoadConfig\] {next(iter(options))}"):
        LoadConfig(**options)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (4, WeightQuantization(4, 64)),
        ("8", WeightQuantization(8, 64)),
        ("4:32", WeightQuantization(4, 32)),
        (" mxfp4 ", WeightQuantization(4, 32, "mxfp4")),
        (WeightQuantization(mode="nvfp4"), WeightQuantization(4, 16, "nvfp4")),
        (None, None),
    ],
)
def test_a_quantization_is_written_in_a_word(written: Any, meant: Any) -> None:
    assert LoadConfig(quantize=written).quantization == meant


def test_it_is_frozen_equal_by_value_and_hashable() -> None:
    one, other = (LoadConfig(quantize=4, config_overrides={"a": 1}) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != LoadConfig(quantize=4, config_overrides={"a": 2})
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.lazy = True  # type: ignore[misc]


def test_every_field_is_a_keyword_of_load_and_a_flag() -> None:
    names = [item.name for item in dataclasses.fields(LoadConfig)]
    assert list(LoadOptions.__annotations__) == names
    flags = {item.name for item in dataclasses.fields(Flags)}
    assert set(names) - flags == {"config_overrides", "tokenizer_config", "lazy"}
    assert "set" in flags  # as which config_overrides goes


def test_keywords_take_the_place_of_fields(good: Path) -> None:
    config = LoadConfig(dtype="float16", lazy=True)
    model, _ = load(good, config=config, dtype="bfloat16")
    assert model.model.norm.weight.dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model_config", "config_overrides"),
        ("adapter", "did you mean 'adapter_path'"),
        ("torch_dtype", "it is called dtype"),
        ("zzz", "there are dtype, quantize"),
    ],
)
def test_an_unknown_option_of_load_is_refused_with_what_is_meant(name: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"\[load\] unknown option '{name}': .*{words}"):
        load("demo", **{name: 1})  # type: ignore[misc]
    with pytest.raises(InvalidRequest, match="expected a LoadConfig"):
        load("demo", config={"dtype": "float32"})  # type: ignore[arg-type]


@pytest.mark.parametrize("quantize", [4, "8:32", "mxfp4"])
def test_weights_are_quantized_as_mlx_lm_does(quantize: Any, good: Path) -> None:
    from mlx_lm.utils import quantize_model

    wanted = LoadConfig(quantize=quantize).quantization
    assert wanted is not None
    plain, _ = load(good)
    found, _ = load(good, quantize=quantize)
    same, _ = quantize_model(plain, {}, wanted.group_size, wanted.bits, wanted.mode)
    assert isinstance(found.layers[0].mlp.up_proj, nn.QuantizedLinear)
    theirs, ours = (dict(tree_flatten(model.parameters())) for model in (same, found))
    assert theirs.keys() == ours.keys()
    assert all(mx.array_equal(theirs[name], ours[name]) for name in theirs)


def test_where_nothing_can_be_quantized_it_is_said(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", hidden_size=32, intermediate_size=48)
    with pytest.raises(InvalidRequest, match="groups of 128: no layer's width is a multiple"):
        load(folder, quantize="4:128")


def test_overrides_come_before_the_model_is_built(good: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
    model, _ = load(good, config_overrides={"rope_scaling": yarn})
    assert context_length(model) == 4 * CONTEXT
    plain, _ = load(good)
    assert not mx.allclose(model(TOKENS), plain(TOKENS), atol=1e-3)
    turned, _ = load(good, config_overrides={"rope_theta": 50.0})
    written = write_folder(good.parent / "turned", hidden_size=64, rope_theta=50.0)
    assert mx.array_equal(turned(TOKENS), load(written)[0](TOKENS))


def test_a_dot_leads_into_an_entry() -> None:
    config = LoadConfig(config_overrides={"rope_scaling.factor": 8.0, "a.b.c": 1, "x": None})
    old = {"rope_scaling": {"type": "yarn", "factor": 4.0}, "x": 3}
    assert config.changes_to(old) == {
        "rope_scaling": {"type": "yarn", "factor": 8.0},
        "a": {"b": {"c": 1}},
        "x": None,
    }
    assert old["rope_scaling"] == {"type": "yarn", "factor": 4.0}
    with pytest.raises(InvalidRequest, match=r"'x\.y', but the config has 3"):
        LoadConfig(config_overrides={"x.y": 1}).changes_to(old)


def test_an_override_that_does_not_fit_is_one_line(good: Path) -> None:
    with pytest.raises(ModelLoadError, match="parameters") as caught:
        load(good, config_overrides={"num_hidden_layers": 3})
    assert "\n" not in str(caught.value)


def test_values_on_the_command_line_are_json_or_texts() -> None:
    found = parse_overrides(
        ["a=1e6", "b.c=true", "d=", "e=x=y", 'f={"type": "yarn"}', "g=null", " h = yarn "]
    )
    assert found == {
        "a": 1e6,
        "b.c": True,
        "d": "",
        "e": "x=y",
        "f": {"type": "yarn"},
        "g": None,
        "h": "yarn",
    }
    for text in ("a", "=1", ".b=1"):
        with pytest.raises(InvalidRequest, match=r"--set .*expected KEY=VALUE"):
            parse_overrides([text])


def test_the_command_line_loads_as_it_is_told(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["generate", "--model", str(good), "-p", "ab", "-m", "4", "--verbose", "False"]
    texts = []
    for more in ([], ["--set", "rope_theta=2.0"], ["--quantize", "2:32"]):
        assert main([*base, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 3
    assert main([*base, "--quantize", "9"]) == 2
    assert "quantize: bits=9" in capsys.readouterr().err


def test_what_is_the_target_s_own_is_not_the_draft_s() -> None:
    flags = Flags(model="m", draft_model="d", dtype="float32", quantize="4", set=("a=1",))
    assert flags.loading == LoadConfig(dtype="float32", quantize=4, config_overrides={"a": 1})
    assert flags.draft_loading == LoadConfig(dtype="float32")
