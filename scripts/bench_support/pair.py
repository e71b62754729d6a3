"""The embedded pair, with a target as costly as one likes.

Every MLP of the target gets random gate and up rows whose down columns are zero. That keeps its
outputs and so the acceptance exactly, and makes a pass as costly as one likes, so the ratio of
target to draft cost is that of real pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx_spec.model  # the fast BLAS is loaded before mlx

import mlx.core as mx  # isort: skip
import mlx.nn as nn

import mlx_spec

PROMPTS = (
    "def read_",
    "class Stack:\n    def __init__(self",
    "import os\nimport sys\n\n",
    "    def close(self):\n        ",
    "for line in ",
    "try:\n    import ",
    "def main():\n    parser = ",
    "class Error(Exception):\n    ",
    "    if not isinstance(",
    "        raise ValueError(",
    "def _parse_",
    "    return self._",
    "with open(",
    "class Connection:\n    def send(self, ",
    "def test_",
    "    for name in sorted(",
)


@dataclass(frozen=True)
class Pair:
    """Target, draft and their tokenizer."""

    model: Any
    draft: Any
    tokenizer: Any

    def prompts(self, count: int) -> list[list[int]]:
        """``count`` short beginnings of Python source, as token ids."""
        return [list(self.tokenizer.encode(PROMPTS[i % len(PROMPTS)])) for i in range(count)]


def load_pair(width: int, vocabulary: int = 0) -> Pair:
    """The embedded pair.

    Args:
        width: the target's MLPs are padded to it; 0 leaves them.
        vocabulary: both models' vocabularies are padded to it; 0 leaves them.
    """
    model, tokenizer = mlx_spec.load("demo")
    draft, _ = mlx_spec.load("demo-draft")
    tokenizer.eos_token_ids = []  # equal lengths for everyone
    if vocabulary:
        model, draft = add_tokens(model, vocabulary), add_tokens(draft, vocabulary)
    return Pair(widen(model, width) if width else model, draft, tokenizer)


def add_tokens(model: Any, vocabulary: int) -> Any:
    """Pad the embeddings and the head of a Llama model with tokens that nobody says.

    What it says stays the same; what a head and a choice among so many cost is paid.
    """
    embedding = model.model.embed_tokens.weight
    head = embedding if model.args.tie_word_embeddings else model.lm_head.weight
    more = vocabulary - len(head)
    bias = mx.concatenate([mx.zeros(len(head), head.dtype), mx.full(more, -1e4, head.dtype)])
    model.lm_head = nn.Linear(head.shape[1], vocabulary)
    model.lm_head.weight, model.lm_head.bias = mx.pad(head, [(0, more), (0, 0)]), bias
    model.model.embed_tokens.weight = mx.pad(embedding, [(0, more), (0, 0)])
    model.args.tie_word_embeddings = False
    mx.eval(model.parameters())
    return model


def widen(model: Any, width: int, seed: int = 0) -> Any:
    """Pad every MLP of a Llama model to ``width`` without changing what it computes."""
    mx.random.seed(seed)
    for layer in model.layers:
        mlp = layer.mlp
        have, dim = mlp.gate_proj.weight.shape
        more = width - have
        for name in ("gate_proj", "up_proj"):
            weight = getattr(mlp, name).weight
            extra = mx.random.normal((more, dim), weight.dtype) * 0.02
            setattr(mlp, name, _linear(mx.concatenate([weight, extra])))
        weight = mlp.down_proj.weight
        zeros = mx.zeros((dim, more), weight.dtype)
        mlp.down_proj = _linear(mx.concatenate([weight, zeros], axis=1))
    mx.eval(model.parameters())
    return model


def _linear(weight: mx.array) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = weight
    return layer
