"""A Llama in PyTorch, with the parameter names and the arithmetic of Hugging Face's and mlx-lm's.

Half-split RoPE, RMSNorm, grouped-query attention, SwiGLU, tied embeddings. `state_dict()` is the
exported checkpoint as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """The sizes of one model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int = 2048
    head_dim: int = 32
    eps: float = 1e-5
    rope_theta: float = 10_000.0
    max_positions: int = 2048


TARGET = Shape(hidden=256, layers=8, heads=8, kv_heads=4, intermediate=704)
DRAFT = Shape(hidden=128, layers=2, heads=4, kv_heads=2, intermediate=352)


class KVCache:
    """Keys and values of every layer in buffers [B, Hk, capacity, Dh], for generation."""

    def __init__(self, shape: Shape, rows: int, capacity: int, dtype: torch.dtype) -> None:
        size = (2, shape.layers, rows, shape.kv_heads, capacity, shape.head_dim)
        self._keys, self._values = torch.empty(size, dtype=dtype)
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new positions of one layer; return everything up to them."""
        end = self.length + k.shape[2]
        self._keys[layer, :, :, self.length : end] = k
        self._values[layer, :, :, self.length : end] = v
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self._eps)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions and an optional KV cache."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self._layer = layer
        self._heads, self._kv_heads, self._head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.q_proj = _linear(shape.hidden, shape.heads * shape.head_dim)
        self.k_proj = _linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.v_proj = _linear(shape.hidden, shape.kv_heads * shape.head_dim)
        self.o_proj = _linear(shape.heads * shape.head_dim, shape.hidden)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None = None
    ) -> Tensor:
        rows, length, _ = x.shape  # x: [B, T, D]
        q = self.q_proj(x).view(rows, length, self._heads, self._head_dim).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, self._kv_heads, self._head_dim).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self._kv_heads, self._head_dim).transpose(1, 2)
        q, k = _rotate(q, *rope), _rotate(k, *rope)
        if cache is not None:
            k, v = cache.update(self._layer, k, v)
        if length == 1:  # one query, which sees every key
            out = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            out = _causal_attention(q, k, v)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.hidden, shape.intermediate)
        self.up_proj = _linear(shape.hidden, shape.intermediate)
        self.down_proj = _linear(shape.intermediate, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(shape, layer)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x).to(x.dtype), rope, cache)
        return x + self.mlp(self.post_attention_layernorm(x).to(x.dtype))


class Decoder(nn.Module):
    """The layers between token ids and the final hidden state."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.eps)


class Llama(nn.Module):
    """The whole model; `hidden` is kept apart from `logits` so that a teacher can cache it."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        exponents = torch.arange(0, shape.head_dim, 2).double() / shape.head_dim
        angles = torch.outer(torch.arange(shape.max_positions).double(),
                             shape.rope_theta**-exponents)  # fmt: skip
        self.register_buffer("_cos", angles.cos().float(), persistent=False)
        self.register_buffer("_sin", angles.sin().float(), persistent=False)
        self._initialise(torch.Generator().manual_seed(seed))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Token ids [B, T] to normed hidden states [B, T, D].

        With a cache that holds something, T must be 1.
        """
        start = cache.length if cache is not None else 0
        rope = (self._cos[start : start + tokens.shape[1]],
                self._sin[start : start + tokens.shape[1]])  # fmt: skip
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, rope, cache)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.model.norm(x).to(x.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] to logits [..., V] through the tied embedding."""
        return functional.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.hidden(tokens))

    def _initialise(self, generator: torch.Generator) -> None:
        deep = (2 * self.shape.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0, 0.02 * (deep if residual else 1), generator)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, block: int = 128) -> Tensor:
    """Causal attention by blocks of queries: half the time of PyTorch's fused one on this CPU.

    q: [B, H, T, Dh]; k, v: [B, Hk, T, Dh]. The query heads that share a key head are the rows of
    one product, and a block never multiplies the keys after its end.
    """
    rows, heads, length, width = q.shape
    kv_heads = k.shape[1]
    q = (q * width**-0.5).view(rows, kv_heads, heads // kv_heads, length, width)
    keys, outputs = k.transpose(-1, -2), []
    for start in range(0, length, block):
        end = min(start + block, length)
        queries = q[:, :, :, start:end].flatten(2, 3)  # [B, Hk, G * Q, Dh]
        scores = (queries @ keys[..., :end]).unflatten(2, (-1, end - start))
        future = torch.full((end - start, end - start), -torch.inf, dtype=q.dtype).triu(1)
        scores = torch.cat([scores[..., :start], scores[..., start:] + future], dim=-1)
        mixed = torch.softmax(scores, dim=-1).to(v.dtype).flatten(2, 3) @ v[:, :, :end]
        outputs.append(mixed.unflatten(2, (-1, end - start)))
    return torch.cat(outputs, dim=3).flatten(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on [B, H, T, Dh], first half against second half (not interleaved)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@torch.inference_mode()
def generate(
    model: Llama, prompt: Tensor, count: int, temperature: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Continue prompts [B, P] of equal length by `count` tokens; temperature 0 is greedy.

    Returns all tokens [B, P + count] and the hidden states [B, P + count - 1, D] that predicted
    each token but the first.
    """
    random = torch.Generator().manual_seed(seed)
    dtype = model.model.embed_tokens.weight.dtype
    cache = KVCache(model.shape, prompt.shape[0], prompt.shape[1] + count, dtype)
    tokens, states, step = [prompt], [], prompt
    for _ in range(count):
        states.append(model.hidden(step, cache))
        logits = model.logits(states[-1][:, -1]).float()
        if temperature == 0:
            step = logits.argmax(-1, keepdim=True)
        else:
            weights = torch.softmax(logits / temperature, dim=-1)
            step = torch.multinomial(weights, 1, generator=random)
        tokens.append(step)
    return torch.cat(tokens, dim=1), torch.cat(states, dim=1)
