"""The two real GGUF files against an account of their models that shares nothing with the loader.

A forward pass in numpy, straight from llama.cpp's definition: weights as the ``gguf`` package
dequantizes them, rows and norms as the file has them, positions turned as llama.cpp turns them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlx_spec.load_config import LoadConfig
from mlx_spec.model.gguf.file import open_gguf
from mlx_spec.model.gguf.load import load_gguf_model
from tests.real_models import gemma3_gguf, smollm2_gguf

Array = np.ndarray
TOKENS = [510, 3, 7042, 19, 888]


@dataclass(frozen=True)
class Shape:
    """What of a model is not in its tensors' shapes."""

    layers: int
    heads: int
    groups: int
    head: int
    epsilon: float
    gemma: bool

    def base(self, layer: int) -> float:
        """Of the rotation; Gemma 3 has another in every sixth layer."""
        if not self.gemma:
            return 100_000.0
        return 1_000_000.0 if layer % 6 == 5 else 10_000.0


SMOLLM2 = Shape(layers=30, heads=9, groups=3, head=64, epsilon=1e-5, gemma=False)
GEMMA3 = Shape(layers=18, heads=4, groups=1, head=256, epsilon=1e-6, gemma=True)


def weights_of(path: Path) -> dict[str, Array]:
    """Every tensor as float32, by its name in the file."""
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in open_gguf(path).tensors.values()
    }


def norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def turned(x: Array, base: float, neighbours: bool) -> Array:
    """Heads [..., position, head] turned, numbers of a pair side by side or half a head apart."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[-2])[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = (x[..., ::2], x[..., 1::2]) if neighbours else (x[..., :half], x[..., half:])
    pairs = (a * cos - b * sin, a * sin + b * cos)
    return np.stack(pairs, -1).reshape(x.shape) if neighbours else np.concatenate(pairs, -1)


def attention(x: Array, block: Callable[[str], Array], shape: Shape, base: float) -> Array:
    count = len(x)

    def heads(name: str, number: int) -> Array:
        y = (x @ block(f"attn_{name}").T).reshape(count, number, shape.head)
        if shape.gemma and name != "v":
            y = norm(y, block(f"attn_{name}_norm"), shape.epsilon)
        return y.swapaxes(0, 1)

    q, k, v = heads("q", shape.heads), heads("k", shape.groups), heads("v", shape.groups)
    q, k = (turned(y, base, neighbours=not shape.gemma) for y in (q, k))
    k, v = (np.repeat(y, shape.heads // shape.groups, axis=0) for y in (k, v))
    scores = q @ k.swapaxes(1, 2) * shape.head**-0.5
    scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True)) @ v
    return mixed.swapaxes(0, 1).reshape(count, -1) @ block("attn_output").T


def gate(x: Array, shape: Shape) -> Array:
    if shape.gemma:
        return x * 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x))


def logits(weights: dict[str, Array], shape: Shape) -> Array:
    """Of every token's successor."""
    embedding = weights["token_embd.weight"]
    x = embedding[TOKENS]
    if shape.gemma:
        # As the original and mlx-lm have it; llama.cpp does not round the root.
        x = x * float(mx.array(embedding.shape[1] ** 0.5).astype(mx.bfloat16))
    for layer in range(shape.layers):

        def block(name: str, layer: int = layer) -> Array:
            return weights[f"blk.{layer}.{name}.weight"]

        def behind(y: Array, name: str, block: Callable[[str], Array] = block) -> Array:
            return norm(y, block(name), shape.epsilon) if shape.gemma else y

        y = norm(x, block("attn_norm"), shape.epsilon)
        x = x + behind(attention(y, block, shape, shape.base(layer)), "post_attention_norm")
        y = norm(x, block("ffn_norm"), shape.epsilon)
        y = gate(y @ block("ffn_gate").T, shape) * (y @ block("ffn_up").T)
        x = x + behind(y @ block("ffn_down").T, "post_ffw_norm")
    return norm(x, weights["output_norm.weight"], shape.epsilon) @ embedding.T


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "shape"), [(smollm2_gguf, SMOLLM2), (gemma3_gguf, GEMMA3)], ids=["smollm2", "gemma3"]
)
def test_logits_are_those_of_an_independent_dequantization(
    file: Callable[[], Path], shape: Shape
) -> None:
    """To 2e-5 of the largest logit: both sum in float32, in another order."""
    path = file()
    model, _ = load_gguf_model(open_gguf(path), LoadConfig())
    have = np.array(model(mx.array([TOKENS])))[0]
    wanted = logits(weights_of(path), shape)
    assert np.abs(have - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert (have.argmax(-1) == wanted.argmax(-1)).all()
