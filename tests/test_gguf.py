"""GGUF files of every architecture: config, names, order of rows and values come out again.

Each is written by ``tests.gguf_files``, which knows the format from the converters' side, and held
against mlx-lm's model with the same weights: equal bit for bit.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_spec import load
from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.load_config import LoadConfig
from mlx_spec.model.context import context_length
from mlx_spec.model.gguf.architectures import ARCHITECTURES
from mlx_spec.model.gguf.file import open_gguf
from mlx_spec.model.gguf.load import load_gguf_model
from mlx_spec.model.gguf.splits import SPLITS
from tests.gguf_files import MODEL_TYPES, Q, write_gguf
from tests.gguf_metadata import add_entry

PROMPT = mx.array([[1, 5, 9, 200, 3, 7, 7, 100, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51]])


def read(path: Path, plain: bool | None = None, **options: Any) -> Any:
    """The model of a file."""
    return load_gguf_model(open_gguf(path), LoadConfig(**options), plain)[0]


def test_every_architecture_is_tested_and_documented() -> None:
    assert set(MODEL_TYPES) - {"mixtral"} == set(ARCHITECTURES)
    page = (Path(__file__).parent.parent / "docs" / "gguf.md").read_text(encoding="utf-8")
    named = page.split("By GGUF's name: ")[1].split(". Each is")[0].replace("\n", " ")
    assert re.sub(r" \(.*?\)", "", named).split(", ") == sorted(ARCHITECTURES)
    assert f"; {len(SPLITS)} names are known" in page


@pytest.mark.parametrize("architecture", MODEL_TYPES)
def test_a_file_says_what_the_model_said(architecture: str, tmp_path: Path) -> None:
    wanted = write_gguf(tmp_path / "model.gguf", architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model = read(tmp_path / "model.gguf")
    assert model.model_type == MODEL_TYPES[architecture]
    assert mx.array_equal(model(PROMPT), wanted(PROMPT))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "phi3"])
def test_an_embedding_may_be_the_head(architecture: str, tmp_path: Path) -> None:
    wanted = write_gguf(tmp_path / "model.gguf", architecture)
    untied = dict(tree_flatten(wanted.parameters()))
    drop_tensor(tmp_path / "model.gguf", "output.weight")
    model = read(tmp_path / "model.gguf")
    assert "lm_head.weight" in untied
    assert "lm_head.weight" not in dict(tree_flatten(model.parameters()))
    hidden = model.model(PROMPT)
    assert mx.array_equal(model(PROMPT), hidden @ untied["model.embed_tokens.weight"].T)


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe", "gpt-oss", "gemma3", "nemotron"])
def test_a_quantized_file_has_the_same_weights(architecture: str, tmp_path: Path) -> None:
    """Permuted rows, experts and norms, with what is quantized staying so: no weight changes."""
    wanted = write_gguf(tmp_path / "model.gguf", architecture, Q.Q4_0)
    model = read(tmp_path / "model.gguf", plain=False)
    packed = [module for _, module in model.named_modules() if "scales" in module]
    assert packed
    for (name, have), (_, want) in zip(
        tree_flatten(dequantized(model)), tree_flatten(wanted.parameters()), strict=True
    ):
        assert mx.array_equal(have, want), name
    # 20 positions through two layers in another order of sums.
    assert mx.allclose(model(PROMPT), wanted(PROMPT), atol=2e-3)
    assert mx.array_equal(read(tmp_path / "model.gguf", plain=True)(PROMPT), wanted(PROMPT))


def dequantized(model: Any) -> Any:
    from mlx_lm.utils import dequantize_model

    return dequantize_model(model).parameters()


def test_load_takes_a_file(tmp_path: Path) -> None:
    wanted = write_gguf(tmp_path / "model.gguf", kind=Q.Q8_0)
    model, tokenizer = load(tmp_path / "model.gguf")
    assert mx.array_equal(model(PROMPT), wanted(PROMPT))
    assert tokenizer.decode(tokenizer.encode("habt")) == "habt"
    assert context_length(model) == 256
    (tmp_path / "model").write_bytes((tmp_path / "model.gguf").read_bytes())
    with pytest.warns(RuntimeWarning, match="8-bit weights"):
        again, _ = load(tmp_path / "model", dtype="float16", lazy=True)  # by its first bytes
    assert again.lm_head.scales.dtype == mx.float16


def test_overrides_count_before_the_weights_are_read(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    model, _ = load(tmp_path / "model.gguf", config_overrides={"rope_theta": 5e5})
    assert model.layers[0].self_attn.rope.base == 5e5


def test_what_quantized_weights_become_is_chosen(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    wanted = write_gguf(tmp_path / "model.gguf", kind=Q.Q6_K, **sizes)
    weight = wanted.lm_head.weight
    scale = mx.abs(weight.reshape(272, -1, 32)).max(-1, keepdims=True)

    def error(**options: Any) -> float:
        model = read(tmp_path / "model.gguf", **options)
        values = dict(tree_flatten(dequantized(model)))["lm_head.weight"]
        return float((mx.abs(values - weight).reshape(272, -1, 32) / scale).max())

    assert error() == error(plain=True) == 0
    assert 0 < error(plain=False) == error(plain=False, gguf_requantize="8bit") < 2 / 255
    assert error(plain=True, gguf_requantize="8bit") == error(plain=False)
    assert 2 / 255 < error(gguf_requantize="4bit") < 2 / 15
    assert 0 < error(gguf_requantize="float16") < 2**-11


ANY_KIND = [Q.F16, Q.BF16, Q.Q5_1, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.IQ3_S, Q.IQ4_XS, Q.MXFP4]


@pytest.mark.parametrize("kind", ANY_KIND, ids=lambda kind: kind.name)
def test_a_file_of_any_kind_comes_out_plain_on_a_cpu(kind: Q, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    wanted = write_gguf(tmp_path / "model.gguf", kind=kind, **sizes)
    model, _ = load(tmp_path / "model.gguf")
    assert mx.array_equal(model(PROMPT), wanted(PROMPT))
    assert not [module for _, module in model.named_modules() if "scales" in module]


def test_where_plain_weights_do_not_fit_they_stay_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "model.gguf", kind=Q.Q4_0)
    monkeypatch.setattr("mlx_spec.model.gguf.load.recommended_memory", lambda: 100_000)
    with pytest.warns(RuntimeWarning, match="4-bit weights"):
        model, _ = load(tmp_path / "model.gguf")
    assert model.lm_head.bits == 4
    assert model.lm_head.scales.dtype == mx.float32


@pytest.mark.parametrize(
    ("architecture", "kind", "norms", "dtype"),
    [
        ("llama", Q.BF16, 1.25, mx.bfloat16),
        ("llama", Q.F16, 1.25, mx.float16),
        ("llama", Q.F16, 1.1, mx.float32),  # norms that float16 would round
        ("gemma", Q.F16, 1.25, mx.float32),  # layers that pass float16's range
        ("gemma", Q.BF16, 1.25, mx.bfloat16),
        ("llama", Q.Q8_0, 1.25, mx.float32),
    ],
)
def test_the_type_is_one_that_loses_nothing(
    architecture: str, kind: Q, norms: float, dtype: mx.Dtype, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, architecture, kind)
    names = ["output_norm", *(f"blk.{i}.{name}_norm" for i in range(2) for name in ("attn", "ffn"))]
    rewrite(path, {f"{name}.weight": np.full(32, norms, np.float32) for name in names})
    types = {value.dtype for _, value in tree_flatten(read(path, plain=False).parameters())}
    assert types - {mx.uint32} == {dtype}


ROPE: dict[str, Any] = {"freq_base": 500000.0, "scaling.original_context_length": 64}


def rope(**entries: Any) -> dict[str, Any]:
    named = {f"llama.rope.{name.replace('__', '.')}": value for name, value in entries.items()}
    return {**{f"llama.rope.{name}": value for name, value in ROPE.items()}, **named}


def test_positions_may_be_scaled(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata=rope(scaling__type="linear", scaling__factor=4.0))
    assert read(path).layers[0].self_attn.rope.scale == 0.25
    write_gguf(path, metadata=rope(scaling__type="yarn", scaling__factor=4.0))
    model, _ = load(path)
    assert type(model.layers[0].self_attn.rope).__name__ == "YarnRoPE"
    assert context_length(model) == 256
    write_gguf(path, metadata=rope(scaling__type="none"))
    assert read(path).layers[0].self_attn.rope.base == 500000.0
    write_gguf(path, metadata=rope(scaling__type="ntk", scaling__factor=2.0))
    with pytest.raises(UnsupportedModel, match=r"model\.gguf scales positions by 'ntk'"):
        read(path)


def test_llama3_scaling_is_found_by_its_factors(tmp_path: Path) -> None:
    """The converter writes only what the scaling comes to, for each pair of a head."""
    path = tmp_path / "model.gguf"
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    wanted = write_gguf(path, metadata=rope(), rope_theta=500000.0, rope_scaling=scaling)
    turn = wanted.layers[0].self_attn.rope
    plain = 500000.0 ** (np.arange(0, 8, 2) / 8)
    factors = (np.array(turn._freqs) / plain).astype(np.float32)
    assert len(set(factors)) > 1
    add_tensor(path, "rope_freqs.weight", factors)
    assert mx.array_equal(read(path)(PROMPT), wanted(PROMPT))
    add_tensor(path, "rope_freqs.weight", np.array([1, 2, 3, 8], dtype=np.float32))
    with pytest.raises(UnsupportedModel, match="not those of Llama 3"):
        read(path)


def test_longrope_has_its_factors_as_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    factors = {"long": [1.0, 2.0, 3.0, 4.0], "short": [1.0, 1.0, 1.5, 2.0]}
    scaling = {f"{name}_factor": values for name, values in factors.items()}
    wanted = write_gguf(
        path,
        "phi3",
        metadata={"phi3.rope.scaling.original_context_length": 64},
        rope_scaling={"type": "longrope", "original_max_position_embeddings": 64, **scaling},
        original_max_position_embeddings=64,
    )
    for name, values in factors.items():
        add_tensor(path, f"rope_factors_{name}.weight", np.array(values, dtype=np.float32))
    assert mx.array_equal(read(path)(PROMPT), wanted(PROMPT))


def test_other_architectures_are_refused_with_the_list(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", metadata={"general.architecture": "zorg"})
    with pytest.raises(UnsupportedModel, match=r"model\.gguf is of architecture 'zorg'.* gemma3, "):
        load(tmp_path / "model.gguf")


def test_entries_that_nobody_reads_are_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", metadata={"llama.attention.clamp_kqv": 8.0})
    with pytest.warns(
        RuntimeWarning, match=r"has llama\.attention\.clamp_kqv 8\.0 in its metadata"
    ):
        load(tmp_path / "model.gguf")


def drop_tensor(path: Path, name: str) -> None:
    rewrite(path, {name: None})


def add_tensor(path: Path, name: str, values: np.ndarray) -> None:
    rewrite(path, {name: values})


def rewrite(path: Path, changes: dict[str, np.ndarray | None]) -> None:
    """Write a file again, with some tensors changed, added or (None) left out."""
    import gguf

    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    kept = [tensor for tensor in reader.tensors if tensor.name not in changes]
    copies = [(tensor.name, np.array(tensor.data), tensor.tensor_type) for tensor in kept]
    writer = gguf.GGUFWriter(path, values["general.architecture"])
    for name, value in values.items():
        if not name.startswith(("general.architecture", "GGUF.")):
            add_entry(writer, name, value)
    for name, data, kind in copies:
        writer.add_tensor(name, data, raw_dtype=kind)
    for name, data in changes.items():
        if data is not None:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blk.1.ffn_up.weight": None}, r"model\.gguf lacks blk\.1\.ffn_up\.weight"),
        ({"output_norm.weight": None, "blk.0.attn_q.weight": None}, "lacks blk.0.attn_q.weight, o"),
        ({"token_embd.weight": None}, r"model\.gguf has no tensor token_embd\.weight"),
        (
            {"blk.0.attn_q.weight": np.zeros((16, 32), np.float32)},
            r"blk\.0\.attn_q\.weight is 16 x 32, by the metadata it should be 32 x 32",
        ),
        (
            {"blk.0.attn_twist.weight": np.zeros(32, np.float32)},
            r"holds blk\.0\.attn_twist\.weight, which mlx-lm's llama has no place for",
        ),
        ({"blk.0.attn_q.bias": np.zeros(32, np.float32)}, r"lacks blk\.1\.attn_q\.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf")
    rewrite(tmp_path / "model.gguf", change)
    with pytest.raises((ModelLoadError, UnsupportedModel), match=words) as caught:
        load(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


def test_biases_that_no_layer_has_are_zero(tmp_path: Path) -> None:
    """A class with one switch for all biases, of a model that has them in queries only."""
    path = tmp_path / "model.gguf"
    wanted = write_gguf(path, attention_bias=True)
    rewrite(path, {f"blk.{layer}.attn_output.bias": None for layer in range(2)})
    model = read(path)
    assert mx.array_equal(
        model.layers[1].self_attn.q_proj.bias, wanted.layers[1].self_attn.q_proj.bias
    )
    assert not mx.any(model.layers[1].self_attn.o_proj.bias)
