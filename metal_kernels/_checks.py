"""Checks of arguments that several operations share. Messages name operation, place and numbers."""

from __future__ import annotations

import mlx.core as mx

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def fail(operation: str, message: str) -> ValueError:
    """The error to raise, with the operation's name in front."""
    return ValueError(f"[metal_kernels.{operation}] {message}")


def check_array(operation: str, name: str, array: mx.array, axes: str) -> None:
    """Refuse what is not an array of floats with these axes.

    Args:
        operation, name: for the message.
        array: the argument.
        axes: their names, such as ``"B H N D"``; ``"... H"`` allows any number before.
    """
    if not isinstance(array, mx.array):
        raise fail(operation, f"{name} is a {type(array).__name__}, expected an mx.array")
    names = axes.split()
    wrong = array.ndim < 1 if names[0] == "..." else array.ndim != len(names)
    if wrong:
        shape = f"[{', '.join(names)}]"
        raise fail(operation, f"{name} has shape {array.shape}, expected {shape}")
    if array.dtype not in FLOATS:
        raise fail(operation, f"{name} is {array.dtype}, expected float32, float16 or bfloat16")


def check_weight(operation: str, name: str, weight: mx.array | None, width: int) -> None:
    """Refuse a weight that is not one float for each of ``width`` elements."""
    if weight is None:
        return
    check_array(operation, name, weight, "H")
    if weight.shape[0] != width:
        raise fail(operation, f"{name} has {weight.shape[0]} elements, expected {width}")
