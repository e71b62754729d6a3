"""``ShapedKernel``: a kernel for the shapes of a pass where it pays, MLX's operations elsewhere.

Whether it pays was measured at some points (rows, new tokens). A pass between points takes it only
if it pays at all neighbours::

    tokens 5   x---------x---------o      x  pays      a pass of 4 rows of 3 tokens: yes
           |   |   yes   |   no    |      o  does not  a pass of 16 rows of 3: no
    tokens 1   x---------x---------x                   a pass of 64 rows of 1: as 32 rows, yes
             1 row     8 rows    32 rows

Attention has a third axis, the keys of a row: a pass of 2,000 keys lies between the points of 1,024
and of 4,096. Two stand for a corner that was not tried (many rows of many keys): as many rows of
fewer keys, and fewer rows of as many.

Prompts are read by MLX's operations: passes of more tokens a row than a draft has were not tried.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from metal_kernels import Operation
from metal_kernels.attention_inputs import MAX_TOKENS
from metal_kernels.trials.site import ALL_POINTS, SHORT, KernelPoint, points_of

_ROWS, _TOKENS, _KEYS = (
    sorted({getattr(point, axis) for point in ALL_POINTS}) for axis in ("rows", "tokens", "keys")
)


class ShapedKernel:
    """A kernel that is asked first whether it takes a pass.

    Args:
        operation: whose kernel it is.
        won: the points where it pays.
    """

    def __init__(self, operation: Operation[Any, Any], won: Iterable[KernelPoint]) -> None:
        self._operation = operation
        self._won = frozenset(won)
        self._tried = frozenset(points_of(operation.name))
        self._known: dict[tuple[int, int, tuple[int, ...]], bool] = {}

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The kernel."""
        return self._operation.kernel(*arguments, **options)

    def takes(self, rows: int, tokens: int, keys: int = SHORT) -> bool:
        """Whether the kernel is to run a pass of so many rows, new tokens and keys of each."""
        shape = rows, tokens, tuple(_neighbours(_KEYS, keys))
        if shape not in self._known:
            self._known[shape] = tokens <= MAX_TOKENS and all(
                self._tried_for(KernelPoint(row, token, key)) <= self._won
                for row in _neighbours(_ROWS, rows)
                for token in _neighbours(_TOKENS, tokens)
                for key in shape[2]
            )
        return self._known[shape]

    def _tried_for(self, corner: KernelPoint) -> set[KernelPoint]:
        """What stands for a corner: itself if it was tried."""
        if corner in self._tried:
            return {corner}
        alike = [point for point in self._tried if point.tokens == corner.tokens]
        return {
            max((one for one in alike if one.rows == corner.rows), key=lambda one: one.keys),
            max((one for one in alike if one.keys == corner.keys), key=lambda one: one.rows),
        }


Call = Callable[..., Any]


def by_shape(operation: Any, ours: Call, own: Call, axis: int = 1) -> Call:
    """A module's ``__call__`` that is ``ours`` for passes that an operation takes, else ``own``.

    Args:
        operation: an implementation; one that takes all passes costs nothing here.
        ours, own: of one signature; rows are the first axis of their first argument.
        axis: of it that holds the new tokens.
    """
    if not isinstance(operation, ShapedKernel):
        return ours

    def call(self: Any, x: Any, *arguments: Any, **options: Any) -> Any:
        fits = operation.takes(x.shape[0], x.shape[axis])
        return (ours if fits else own)(self, x, *arguments, **options)

    return call


def takes(operation: Any, rows: int, tokens: int, keys: int) -> bool:
    """Whether an implementation is to run such a pass: only a :class:`ShapedKernel` may refuse."""
    return not isinstance(operation, ShapedKernel) or operation.takes(rows, tokens, keys)


def _neighbours(points: Sequence[int], value: int) -> list[int]:
    """The points around a value; the first or the last one for all beyond it."""
    above = bisect_left(points, value)
    if above == len(points):
        return [points[-1]]
    least = above if points[above] == value else max(0, above - 1)
    return list(points[least : above + 1])
