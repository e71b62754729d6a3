"""A head's own keys and values: more layers in the slots of its target.

So they move, are saved and given to the prefix cache with the row that they belong to, and count
as its bytes. The target's passes know nothing of them::

    pool.layers   target 0 | target 1 | ... | target n | head      caches that the model gets: all
    position p    token p    token p          token p    [token p + 1, hidden p]     but the last

Of heads behind one another (``stack``) each has layers of its own.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import LayerCache
from mlx_spec.cache.layout import stand_for
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.several import leaves
from mlx_spec.cache.span import Span
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.heads.head import Choices, Head, Heads
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.model.ranks import whole_layers
from mlx_spec.model.runner import ModelRunner
from mlx_spec.model.trial import any_tokens


@dataclass(frozen=True)
class HeadRows:
    """The input of one pass of a head.

    Attributes:
        tokens: [B, N] int32, the token that it reads at each position.
        states: [B, N, D], what the head reads there beside it.
        starts: [B] int32, the first of the positions.
        first: slot of the first row; the B rows are contiguous.
        stage: which head, of those behind one another.
    """

    tokens: mx.array
    states: mx.array
    starts: mx.array
    first: int = 0
    stage: int = 0

    def span(self, limit: int) -> Span:
        """What it reads and writes."""
        count, width = self.tokens.shape
        return Span(self.first, count, self.starts, width, limit)


@dataclass(frozen=True)
class HeadStage:
    """One head with its keys and values.

    Attributes:
        head, choices: what guesses.
        cache: what the head is given; ``layers`` are in it.
    """

    head: Head
    choices: Choices
    cache: Any
    layers: Seq[LayerCache]


class HeadSlots:
    """A head at work on the rows of its target, or several behind one another.

    Args:
        head: what guesses.
        runner: the target with its slots, which are still empty.

    Attributes:
        parts: what both share.
        width: of the target's hidden states, all that are wanted side by side.
        depth: heads behind one another.
        chained: whether each reads the states of the one before it.

    Raises:
        UnsupportedModel: the head does not fit this target, or this target shows no hidden states.
    """

    def __init__(self, head: Heads, runner: ModelRunner) -> None:
        self.parts = TargetParts(runner.model)
        head.check(self.parts)
        if isinstance(head, nn.Module):  # two kinds of 16-bit numbers together become 32-bit ones
            head.set_dtype(self.parts.dtype)
        reads = head.reads(whole_layers(runner.model))
        runner.tap(reads)
        self.width = self.parts.width * (len(reads.layers) + reads.final)
        self._head, self._pool, self._target = head, runner.pool, runner.model
        self._stages = [_stage(one, self.parts) for one in head.stages]
        self.depth, self.chained = len(self._stages), head.chained
        self._layers = [layer for stage in self._stages for layer in stage.layers]
        if any(layer.folds for layer in self._layers):
            raise UnsupportedModel("[HeadSlots] a head that folds tokens into a state")
        runner.attach(self._layers, _cost_of(head, self.parts, self.width))

    @property
    def tokens(self) -> mx.array | None:
        """[V'] int32: the tokens that can be guessed; None: all."""
        return self._stages[0].choices.tokens

    def begin(self, hidden: mx.array) -> mx.array:
        """States of the target's hidden states."""
        return self._head.begin(hidden)

    def write(self, rows: HeadRows) -> None:
        """Keys and values of pairs that are known; what else the layer gives nobody computes."""
        self._run(rows, self._pool.positions, masked=False)

    def read(self, rows: HeadRows, limit: int | None = None) -> mx.array:
        """States [B, N, D] of the next position; ``limit`` keys are read, None for all."""
        return self._run(rows, limit or self._pool.positions, masked=True)

    def logits(self, states: mx.array, stage: int = 0) -> mx.array:
        """[B, N, V'] of states that this stage gave."""
        return self._stages[stage].choices(states)

    def trial(self, rows: int) -> mx.array:
        """One guess for so many rows, of nobody and without keys, to be timed."""
        tokens = any_tokens(rows, 1, self.parts.vocabulary)
        hidden = mx.ones((rows, 1, self.width), self.parts.dtype)
        head = self._stages[0].head
        states = head(head.embed(self.parts, tokens), self._head.begin(hidden))
        return mx.argmax(self.logits(states), axis=-1)

    @property
    def models(self) -> tuple[Any, Any]:
        """What guesses, and what it shares parts with."""
        return self._target, self._head

    def _run(self, rows: HeadRows, limit: int, *, masked: bool) -> mx.array:
        span, stage = rows.span(limit), self._stages[rows.stage]
        for layer in stage.layers:
            layer.bind(span)
        mask = None
        if masked:
            mask = stage.layers[0].make_mask(span.width, window_size=stage.head.window)
        embeddings = stage.head.embed(self.parts, rows.tokens)
        states = stage.head(embeddings, rows.states, mask, stage.cache)
        span.ran()
        return states


def _stage(head: Head, parts: TargetParts) -> HeadStage:
    cache = stand_for(head.own_cache())
    return HeadStage(head, head.choices(parts), cache, list(leaves(cache)))


def _cost_of(head: Heads, parts: TargetParts, width: int) -> RowCost:
    """Bytes of a row, by passes that are never computed."""
    stages = [(one, stand_for(one.own_cache())) for one in head.stages]
    pool = KVCachePool([cache for _, cache in stages], 1)
    pool.acquire(1)
    pool.reserve(1)
    pool.bind(Span(0, 1, mx.zeros(1, mx.int32), 1, 1))
    states = head.begin(mx.zeros((1, 1, width), parts.dtype))
    for one, cache in stages:
        one(one.embed(parts, mx.zeros((1, 1), mx.int32)), states, None, cache)
    return pool.cost
