"""``Replay``: passes of one shape, described to MLX once and then repeated by it.

A pass is some twenty operations a layer, each a call from Python; for a small model that takes as
long as the pass itself, and a draft of K tokens is K passes of the same shape. With fixed slots
and a limit that changes rarely, ``mx.compile`` can keep what a pass looks like (a *trace*)::

    described   tokens, starts --> Python: 28 layers ----------> logits
    traced      tokens, starts, arrays --> one call ----> logits, arrays
                                  ^                           |
                                  `---- layer.arrays <--------'

All that a pass reads and changes goes in and comes out: tokens, starts and the layers' arrays,
whose old ones nobody refers to afterwards, so that MLX writes in place. Weights are constants of a
trace.

Traces may fuse operations, which may round otherwise: this is for guesses, whose bits cannot
change the output, and not for the target.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import mlx.core as mx

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.device import plans_by_shape
from mlx_spec.cache.quantized import QuantizedSlots
from mlx_spec.cache.slot_sizes import whole_steps
from mlx_spec.model.pace import on_cpu
from mlx_spec.model.passes.form import WHOLE
from mlx_spec.model.runner import ModelRunner, Rows

# Making a trace takes as long as 8 to 16 passes that are described (docs/LOG.md).
TRACE_AFTER = 16
# Shapes that are remembered: a trace of 28 layers keeps up to 3 MB of the host's memory.
MOST_SHAPES = 16

# Other kinds may keep something of a pass beside their arrays.
_KINDS = (DenseKVCache, QuantizedSlots)

Arrays: TypeAlias = list[list[mx.array]]
Traced: TypeAlias = Callable[[mx.array, mx.array, Arrays], tuple[mx.array, Arrays]]


def replay_pays() -> bool:
    """Whether traces are worth their making here: the one place that decides it.

    MLX's CPU build fuses norms and rotations too, with a C++ compiler that takes seconds for a
    model's first trace and saves a few percent of a step afterwards (docs/LOG.md). On CUDA every
    shape's trace is compiled, and steps with guesses took twice as long for it.
    """
    return not on_cpu() and not plans_by_shape()


@dataclass
class _Shape:
    uses: int = 0
    traced: Traced | None = None


class Replay:
    """Passes of a model, the frequent shapes of which are traced.

    Args:
        runner: the model with its slots.
        after: passes of one shape that are described before it is traced.
        most: shapes to remember; the least recently used goes first.

    Attributes:
        traces: how many were made.
    """

    def __init__(
        self, runner: ModelRunner, after: int = TRACE_AFTER, most: int = MOST_SHAPES
    ) -> None:
        self._runner, self._after, self._most = runner, after, most
        self._shapes: OrderedDict[tuple[int, ...], _Shape] = OrderedDict()
        self.traces = 0

    def forward(self, rows: Rows) -> mx.array:
        """As :meth:`ModelRunner.forward`, with other roundings at most."""
        pool = self._runner.pool
        # Other kinds may keep something of a pass beside their arrays; other forms want numbers.
        whole = self._runner.support.form == WHOLE
        if not whole or not all(type(layer) in _KINDS and layer.arrays for layer in pool.layers):
            return self._runner.forward(rows)
        # What is read past a row's length is masked, so that the limit may be anything above.
        limit = min(pool.positions, whole_steps(rows.limit))
        shape = self._shape(rows, limit)
        shape.uses += 1
        if shape.uses <= self._after:
            return self._runner.forward(rows)
        if shape.traced is None:
            shape.traced = _trace(self._runner, limit, rows.first)
            self.traces += 1
        arrays = [layer.arrays for layer in pool.layers]
        logits, written = shape.traced(rows.tokens, rows.starts, arrays)
        for layer, new in zip(pool.layers, written, strict=True):
            layer.arrays = new
        return logits

    def _shape(self, rows: Rows, limit: int) -> _Shape:
        # MLX keeps traces by thread, and frees them in the thread of the last call only.
        thread, pool = threading.get_ident(), self._runner.pool
        key = (thread, *rows.tokens.shape, rows.first, limit, pool.slots, pool.positions)
        shape = self._shapes.setdefault(key, _Shape())
        self._shapes.move_to_end(key)
        if len(self._shapes) > self._most:
            self._shapes.popitem(last=False)
        return shape


def _trace(runner: ModelRunner, limit: int, first: int) -> Traced:
    def describe(tokens: mx.array, starts: mx.array, arrays: Arrays) -> tuple[mx.array, Arrays]:
        layers = runner.pool.layers
        for layer, own in zip(layers, arrays, strict=True):
            layer.arrays = own
        logits = runner.forward(Rows(tokens, starts, limit, first))
        return logits, [layer.arrays for layer in layers]

    # Not a method: a trace that referred to its owner would keep it, and the slots, alive.
    return mx.compile(describe)
