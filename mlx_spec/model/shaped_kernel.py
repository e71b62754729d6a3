"""``ShapedKernel``: a kernel for the shapes of a pass where it pays, MLX's operations elsewhere.

Whether it pays was measured at some points (rows, new tokens). A pass between points takes it only
if it pays at all neighbours::

    tokens 5   x---------x---------o      x  pays      a pass of 4 rows of 3 tokens: yes
           |   |   yes   |   no    |      o  does not  a pass of 16 rows of 3: no
    tokens 1   x---------x---------x                   a pass of 64 rows of 1: as 32 rows, yes
             1 row     8 rows    32 rows

Prompts are read by MLX's operations: passes of more tokens a row than a draft has were not tried.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from metal_kernels import Operation
from metal_kernels.attention_inputs import MAX_TOKENS
from metal_kernels.trials.site import POINTS, KernelPoint

_ROWS = sorted({point.rows for point in POINTS})
_TOKENS = sorted({point.tokens for point in POINTS})


class ShapedKernel:
    """A kernel that is asked first whether it takes a pass.

    Args:
        operation: whose kernel it is.
        won: the points where it pays.
    """

    def __init__(self, operation: Operation[Any, Any], won: Iterable[KernelPoint]) -> None:
        self._operation = operation
        self._won = {(point.rows, point.tokens) for point in won}
        self._known: dict[tuple[int, int], bool] = {}

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The kernel."""
        return self._operation.kernel(*arguments, **options)

    def takes(self, rows: int, tokens: int) -> bool:
        """Whether the kernel is to run a pass of so many rows and new tokens of each."""
        shape = rows, tokens
        if shape not in self._known:
            self._known[shape] = tokens <= MAX_TOKENS and all(
                (row, token) in self._won
                for row in _neighbours(_ROWS, rows)
                for token in _neighbours(_TOKENS, tokens)
            )
        return self._known[shape]


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


def takes(operation: Any, rows: int, tokens: int) -> bool:
    """Whether an implementation is to run such a pass: only a :class:`ShapedKernel` may refuse."""
    return not isinstance(operation, ShapedKernel) or operation.takes(rows, tokens)


def _neighbours(points: Sequence[int], value: int) -> list[int]:
    """The points around a value; the last one for all beyond it."""
    above = bisect_left(points, value)
    if above == len(points):
        return [points[-1]]
    return [points[above]] if points[above] == value else list(points[above - 1 : above + 1])
