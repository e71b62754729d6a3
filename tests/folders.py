"""Model folders as they lie on disk: tiny, random, loadable by mlx-lm, and easy to damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.models import SHAPE, make_model

END = "<|end|>"
CONTEXT = 64
_CONFIG: dict[str, Any] = {
    **SHAPE,
    "vocab_size": 272,  # padded past the tokenizer's 257, as many real models are
    "max_position_embeddings": CONTEXT,
}


def byte_vocabulary() -> dict[str, int]:
    """One token a byte, and an end token."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]
    return {letter: index for index, letter in enumerate(letters)}


def write_folder(
    folder: Path,
    vocabulary: dict[str, int] | None = None,
    dtype: mx.Dtype = mx.float16,
    **changes: Any,
) -> Path:
    """A whole model folder: config with ``changes`` (``family``: of which class), weights,
    tokenizer."""
    folder.mkdir(parents=True)
    family = changes.pop("family", "llama")
    settings = {**_CONFIG, **changes}
    config = {"model_type": family, "eos_token_id": 256, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    model = make_model(family, **settings)
    model.set_dtype(dtype)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary or byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END})
    )
    return folder
