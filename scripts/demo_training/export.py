"""Writes a trained model as a folder that `mlx_lm.load` and transformers read."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from .corpus import END
from .model import Llama, Shape


def export(model: Llama, tokenizer: Tokenizer, folder: Path) -> int:
    """Write float16 weights, config and tokenizer, each file atomically; return the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        fresh = Path(name)
        weights = {key: value.half().contiguous() for key, value in model.state_dict().items()}
        save_file(weights, fresh / "model.safetensors", metadata={"format": "pt"})
        _write_json(fresh / "config.json", _config(model.shape, end))
        _write_json(fresh / "tokenizer_config.json", _tokenizer_config(model.shape))
        tokenizer.save(str(fresh / "tokenizer.json"), pretty=False)
        size = sum(file.stat().st_size for file in fresh.iterdir())
        for file in fresh.iterdir():
            file.chmod(0o644)
            os.replace(file, folder / file.name)
    return size


def load_exported(folder: Path) -> Llama:
    """Read an exported folder back into PyTorch, as float32."""
    config = json.loads((folder / "config.json").read_text())
    model = Llama(
        Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            head_dim=config["head_dim"],
            eps=config["rms_norm_eps"],
            rope_theta=config["rope_theta"],
            max_positions=config["max_position_embeddings"],
        )
    )
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()})
    return model.eval()


def _config(shape: Shape, end: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": end,
        "eos_token_id": end,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "vocab_size": shape.vocab,
    }


def _tokenizer_config(shape: Shape) -> dict[str, object]:
    return {
        "bos_token": END,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": shape.max_positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
