"""Between mlx arrays and bytes in the simulator's memory."""

import ctypes
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

Scalar = bool | int | float


@dataclass(frozen=True)
class Bytes:
    """An input as the kernel gets it: its memory, and where in it element 0 lies.

    `shape` and `strides` (in elements) are those that MLX would pass.
    """

    data: bytes
    start: int
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def dtype_name(dtype: mx.Dtype) -> str:
    """``float32`` of ``mlx.core.float32``."""
    return str(dtype).rsplit(".", 1)[-1]


def as_array(value: "mx.array | Scalar") -> mx.array:
    """An input as MLX would take it: Python numbers become 0-d arrays."""
    return value if isinstance(value, mx.array) else mx.array(value)


def _numpy(array: mx.array) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """A view of an evaluated array's memory, with its strides; bfloat16 as its bits."""
    mx.eval(array)
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
        mx.eval(array)
    return np.asarray(array)


def to_bytes(array: mx.array, row_contiguous: bool) -> Bytes:
    """The memory of an input; a contiguous copy of it where the kernel asks for one."""
    view = _numpy(array)
    if row_contiguous or view.size == 0 or view.ndim == 0:
        view = np.ascontiguousarray(view).reshape(array.shape)
        data, start = view.tobytes(), 0
        strides = _row_strides(array.shape)
    else:
        low, high = np.lib.array_utils.byte_bounds(view)
        data, start = ctypes.string_at(low, high - low), view.ctypes.data - low
        strides = tuple(stride // view.itemsize for stride in view.strides)
    return Bytes(data, start, view.itemsize, tuple(array.shape), strides)


def _row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def from_bytes(data: bytes, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """An output's bytes as an array."""
    name = "uint16" if dtype == mx.bfloat16 else dtype_name(dtype)
    flat = np.frombuffer(data, dtype=np.bool_ if name == "bool" else np.dtype(name))
    array = mx.array(flat.copy())
    array = array.view(mx.bfloat16) if dtype == mx.bfloat16 else array
    return array.reshape(shape)
