"""A head's guesses several positions deep, over whole texts at once.

While drafting, the head reads the target's hidden states up to the last verified position and its
own guesses of them behind it. Training does the same for every position of a text as though each
were the last verified one (EAGLE-3's "training-time test"): what depth d reads at position q is
what depth d - 1 gave at q - 1, and of keys and values::

                  keys at:  q-3  q-2  q-1   q
    depth 1 at q             1    1    1    1      1: from the target's own hidden state
    depth 2 at q             1    1    1    2      2: from depth 1's guess of it
    depth 3 at q             1    1    2    3      3: from depth 2's
"""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.model.heads.head import DraftHead

_HIDDEN = -1e9


def unroll(head: DraftHead, embeddings: mx.array, hidden: mx.array, depths: int) -> list[mx.array]:
    """What the head expects at each depth, [B, N, H] each; all predict the token at index p + 2.

    Args:
        embeddings: [B, N, H], at p that of token p + 1.
        hidden: [B, N, H], the target's own at p.
        depths: 1 for the target's own hidden states alone.

    Positions before ``depth - 1`` have no guess to read and mean nothing at that depth.
    """
    attention = head.layer.self_attn
    keys: list[mx.array] = []
    values: list[mx.array] = []
    outputs: list[mx.array] = []
    for _ in range(depths):
        if outputs:
            hidden = _later(outputs[-1], 1, axis=1)
        x = head.join(embeddings, hidden)
        normed = head.layer.input_layernorm(x)
        query = attention.rope(_split(attention.q_proj(normed), attention.n_heads))
        keys.append(attention.rope(_split(attention.k_proj(normed), attention.n_kv_heads)))
        values.append(_split(attention.v_proj(normed), attention.n_kv_heads))
        mixed = _attend(query * attention.scale, keys, values)
        x = x + attention.o_proj(mixed)
        x = x + head.layer.mlp(head.layer.post_attention_layernorm(x))
        outputs.append(head.norm(x))
    return outputs


def _split(x: mx.array, heads: int) -> mx.array:
    """[B, N, heads * D] as [B, heads, N, D]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _later(x: mx.array, by: int, axis: int) -> mx.array:
    """What stands ``by`` positions earlier, at each position; zeros before the first."""
    if by == 0:
        return x
    kept = mx.split(x, [x.shape[axis] - by], axis=axis)[0]
    pad = [(0, 0)] * x.ndim
    pad[axis] = (by, 0)
    return mx.pad(kept, pad)


def _attend(query: mx.array, keys: list[mx.array], values: list[mx.array]) -> mx.array:
    """Attention of the deepest positions to the target's own ones and to one of each depth.

    Args:
        query: [B, heads, N, D], scaled.
        keys, values: one [B, kv heads, N, D] a depth.

    Returns:
        [B, N, heads * D].
    """
    count, heads, width, size = query.shape
    groups = keys[0].shape[1]
    query = query.reshape(count, groups, heads // groups, width, size)
    depth = len(keys) - 1
    place = mx.arange(width)
    seen = place[None, :] <= place[:, None] - depth
    scores = query @ keys[0][:, :, None].swapaxes(-1, -2)
    parts = [mx.where(seen, scores, _HIDDEN)]
    for back in range(depth):  # depth - back was at the position `back` before
        key = _later(keys[depth - back], back, axis=2)[:, :, None]
        score = (query * key).sum(axis=-1, keepdims=True)
        parts.append(mx.where((place >= depth)[:, None], score, _HIDDEN))
    weights = mx.softmax(mx.concatenate(parts, axis=-1), axis=-1)
    mixed = weights[..., :width] @ values[0][:, :, None]
    for back in range(depth):
        value = _later(values[depth - back], back, axis=2)[:, :, None]
        mixed = mixed + weights[..., width + back, None] * value
    return mixed.reshape(count, heads, width, size).transpose(0, 2, 1, 3).reshape(count, width, -1)
