"""What the tests of the Metal kernels share: tolerances, odd inputs, attention's cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

import metal_kernels

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# Of the largest value of the reference: rounding of the type, and of sums in another order.
TOLERANCE = {mx.float32: 1e-5, mx.float16: 1e-3, mx.bfloat16: 1e-2}


def error(ours: mx.array, reference: mx.array) -> float:
    """Largest difference over the reference's largest value; NaN if any value is NaN."""
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    wide, truth = ours.astype(mx.float32), reference.astype(mx.float32)
    largest = mx.maximum(mx.abs(truth).max(), 1e-6)
    return float((mx.abs(wide - truth).max() / largest).item())


def assert_close(ours: mx.array, reference: mx.array, factor: float = 1.0) -> None:
    """Within ``factor`` times the tolerance of the type."""
    wrong = error(ours, reference)
    assert wrong <= factor * TOLERANCE[reference.dtype], f"off by {wrong:.2e} of the largest value"


def normal(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    """Seeded noise."""
    return mx.random.normal(shape, key=mx.random.key(seed + 7919 * sum(shape))).astype(dtype)


@dataclass(frozen=True)
class Attend:
    """One call of attention, with inputs that punish: what lies past a length is NaN.

    Attributes:
        lengths: of the rows; B is their number.
        q_heads, kv_heads, tokens, capacity, head_dim: shapes.
        options: further arguments; ``sinks=True`` makes some.
        view: ``"plain"``, ``"pool"`` (K/V are a slice of a larger buffer, q is a transposed
            view), or ``"strided"`` (no axis is dense).
    """

    lengths: tuple[int, ...]
    q_heads: int = 4
    kv_heads: int = 2
    tokens: int = 3
    capacity: int = 180
    head_dim: int = 64
    dtype: mx.Dtype = mx.float32
    options: dict[str, Any] = field(default_factory=dict)
    view: str = "plain"

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the operation."""
        rows, dim = len(self.lengths), self.head_dim
        q = self._view(normal(rows, self.q_heads, self.tokens, dim, seed=1), 0.0)
        filled = mx.arange(self.capacity)[:, None] < mx.array(self.lengths)[:, None, None, None]
        slots = [
            mx.where(filled, normal(rows, self.kv_heads, self.capacity, dim, seed=seed), mx.nan)
            for seed in (2, 3)
        ]
        k, v = (self._view(slot, mx.nan) for slot in slots)
        options = {"scale": dim**-0.5, **self.options}
        if options.get("sinks"):
            options["sinks"] = normal(self.q_heads, dtype=self.dtype, seed=4)
        return (q, k, v, list(self.lengths)), options

    def _view(self, array: mx.array, around: float) -> mx.array:
        """The array itself, or equal values seen through other strides."""
        array = array.astype(self.dtype)
        if self.view == "pool":
            wide = mx.pad(array, [(1, 1), (0, 0), (0, 9), (0, 0)], constant_values=around)
            return wide[1:-1, :, : array.shape[2]]
        if self.view == "strided":
            dense = mx.contiguous(array.transpose(0, 2, 3, 1))
            mx.eval(dense)
            return dense.transpose(0, 3, 1, 2)
        return array

    def error(self, operation: Any = metal_kernels.attention) -> float:
        """Of the kernel, against the reference."""
        arguments, options = self.inputs()
        with mx.stream(mx.cpu):  # whose float32 products are float32's, on every machine
            reference = metal_kernels.attention.reference(*arguments, **options)
            mx.eval(reference)
        return error(operation.kernel(*arguments, **options), reference)


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        file: of ``metal_kernels``.
        name: what is wrong.
        before, after: the change in its text; every occurrence.
        caught: kinds of findings, and ``value``, that notice.
        run: the case that must notice; gives the error of the values.
    """

    file: str
    name: str
    before: str
    after: str
    caught: str
    run: Callable[[], float]
