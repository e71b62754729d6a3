"""A target whose next token is a sum over its text, and a head that knows it from hidden states.

With w(q) = q % 5 + 1 the token behind position p is ``sum of w(q) t[q], q <= p, + 3 t[p - 1]``,
modulo the vocabulary. The hidden state at p says that token, and t[p]. The head at p is given
t[p + 1] and t[p]; what came before it has from its own keys and values alone, and t[0] from the
hidden state of the first position alone. So it is right about the next token if tokens, hidden
states, positions, and keys and values are all those of its row and place, and almost never if not.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache

from mlx_spec.model.heads.head import Choices, LastStateHead
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.model.heads.stack import HeadStack

TOKENS = 64


def weight(position: mx.array) -> mx.array:
    return position % 5 + 1


def said(numbers: mx.array) -> mx.array:
    """[B, N, TOKENS] of ids [B, N]."""
    return (numbers[..., None] == mx.arange(TOKENS)).astype(mx.float32)


def heard(states: mx.array) -> mx.array:
    """[B, N] ids of the second half of states."""
    return mx.argmax(states[..., TOKENS:], axis=-1)


def summed(values: mx.array, cache: Any) -> tuple[mx.array, mx.array]:
    """Sums [B, N] of values [B, N] up to each position, and the positions."""
    offset = mx.array(cache.offset).reshape(-1, 1)
    places = offset + mx.arange(values.shape[1])
    new = values.astype(mx.float32)[:, None, :, None]
    _, held = cache.update_and_fetch(new, new)
    before = mx.arange(held.shape[2]) <= places[..., None]
    return mx.where(before, held[:, :, :, 0], 0).sum(axis=-1).astype(mx.int32), places


class SumLayer(nn.Module):  # type: ignore[misc]
    def __call__(self, states: mx.array, cache: Any) -> mx.array:
        tokens = heard(states)
        offset = mx.array(cache.offset).reshape(-1, 1)
        places = offset + mx.arange(tokens.shape[1])
        new = tokens.astype(mx.float32)[:, None, :, None]
        _, held = cache.update_and_fetch(new, new)
        at = mx.arange(held.shape[2])
        times = mx.where(at <= places[..., None], weight(at), 0) + 3 * (at == places[..., None] - 1)
        sums = (times * held[:, :, :, 0]).sum(axis=-1).astype(mx.int32)
        return mx.concatenate([said(sums % TOKENS), said(tokens)], axis=-1)


class SumTarget(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.model_type = "sums"
        ones, none = mx.eye(TOKENS), mx.zeros((TOKENS, TOKENS))
        self.embed_tokens = nn.Embedding(TOKENS, 2 * TOKENS)
        self.embed_tokens.weight = mx.concatenate([none, ones], axis=1)
        self.layers = [SumLayer()]
        self.lm_head = nn.Linear(2 * TOKENS, TOKENS, bias=False)
        self.lm_head.weight = mx.concatenate([ones, none], axis=1)

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        logits: mx.array = self.lm_head(self.layers[0](self.embed_tokens(tokens), cache[0]))
        return logits


class SumHead(LastStateHead):
    def __call__(
        self, embeddings: mx.array, states: mx.array, mask: Any = None, cache: Any = None
    ) -> mx.array:
        new, own = heard(embeddings), heard(states)
        places = mx.array(cache.offset).reshape(-1, 1) + mx.arange(new.shape[1])
        first = mx.where(places == 0, own * weight(mx.array(0)), 0)
        sums, _ = summed(new * weight(places + 1) + first, cache)
        return mx.concatenate([said((sums + 3 * own) % TOKENS), said(new)], axis=-1)

    def check(self, parts: TargetParts) -> None:
        assert parts.width == 2 * TOKENS

    def own_cache(self) -> KVCache:
        return KVCache()

    def choices(self, parts: TargetParts) -> Choices:
        return parts.output()


class FurtherSumHead(LastStateHead):
    """Head k of several: at p it is given t[p + 1 + k], and in the states of the one before it
    t[p + k], and, at the first position alone, the sum up to k."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self._place = place

    def begin(self, hidden: mx.array) -> mx.array:
        return mx.concatenate([hidden, said(heard(hidden) * weight(mx.array(0)) % TOKENS)], axis=-1)

    def __call__(
        self, embeddings: mx.array, states: mx.array, mask: Any = None, cache: Any = None
    ) -> mx.array:
        new, own = heard(embeddings), heard(states[..., : 2 * TOKENS])
        so_far = mx.argmax(states[..., 2 * TOKENS :], axis=-1)
        places = mx.array(cache.offset).reshape(-1, 1) + mx.arange(new.shape[1])
        first = mx.where(places == 0, so_far, 0)
        sums, _ = summed(new * weight(places + 1 + self._place) + first, cache)
        both = [said((sums + 3 * own) % TOKENS), said(new), said(sums % TOKENS)]
        return mx.concatenate(both, axis=-1)

    def check(self, parts: TargetParts) -> None:
        assert parts.width == 2 * TOKENS

    def own_cache(self) -> KVCache:
        return KVCache()

    def choices(self, parts: TargetParts) -> Choices:
        return _FirstTwo(parts.output())


class _FirstTwo:
    """Logits by what states have in common with the target's."""

    tokens = None

    def __init__(self, output: Choices) -> None:
        self._output = output

    def __call__(self, states: mx.array) -> mx.array:
        return self._output(states[..., : 2 * TOKENS])


class SumStack(HeadStack):
    """Heads behind one another that know the next tokens, however many are asked for."""

    def __init__(self, depth: int) -> None:
        super().__init__([FurtherSumHead(place) for place in range(depth)])

    def begin(self, hidden: mx.array) -> mx.array:
        return self.heads[0].begin(hidden)
