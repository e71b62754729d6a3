"""What all kernels share: the choice of an implementation, and the way from source to kernel.

It owns the process-wide choice of :func:`use` and the cache of built kernels. It knows no
operation.

A ``.metal`` file holds plain functions first, then ``//! section NAME`` parts: pieces of kernel
bodies, for which ``mx.fast.metal_kernel`` writes the signature.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar, get_args

import mlx.core as mx

Choice = Literal["metal", "reference"]
CHOICES: tuple[str, ...] = get_args(Choice)

_FOLDER = Path(__file__).parent
_SECTION = re.compile(r"^//! section (\w+)\n", re.MULTILINE)
_choice: Choice = "reference"

Kernel: TypeAlias = Callable[..., list[mx.array]]
"""What ``mx.fast.metal_kernel`` makes: called with inputs and a launch, it gives the outputs."""

P = ParamSpec("P")
R = TypeVar("R")


def available() -> bool:
    """Whether Metal kernels can run here."""
    return bool(mx.metal.is_available())


@contextmanager
def use(choice: Choice) -> Iterator[None]:
    """Choose, for the whole process, which implementation plain calls take.

    Args:
        choice: ``"reference"``, as long as nobody says otherwise, or ``"metal"``, the kernel.

    Raises:
        ValueError: another word, or ``"metal"`` where there is no Metal.
    """
    global _choice
    check_choice("use", choice)
    before, _choice = _choice, choice
    try:
        yield
    finally:
        _choice = before


def check_choice(place: str, choice: str) -> None:
    """Refuse a choice that does not exist, or not here.

    Raises:
        ValueError: naming ``place``.
    """
    if choice not in CHOICES:
        words = ", ".join(CHOICES)
        raise ValueError(f"[metal_kernels.{place}] {choice!r}, expected one of {words}")
    if choice == "metal" and not available():
        raise ValueError(f"[metal_kernels.{place}] 'metal' asked, but there is no Metal here")


class Operation(Generic[P, R]):
    """One operation with two implementations of one signature.

    Args:
        name: as in errors.
        check: raises ``ValueError`` for bad arguments, before anything is launched.
        reference: plain mlx operations; runs anywhere.
        kernel: the Metal kernel.
    """

    def __init__(
        self,
        name: str,
        check: Callable[P, None],
        reference: Callable[P, R],
        kernel: Callable[P, R],
    ) -> None:
        self.name = name
        self._check = check
        self._reference = reference
        self._kernel = kernel
        functools.update_wrapper(self, reference)  # its signature and docstring
        self.__name__ = self.__qualname__ = name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """By the implementation that :func:`use` says."""
        return (self.kernel if _choice == "metal" else self.reference)(*args, **kwargs)

    def reference(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """By plain mlx operations."""
        self._check(*args, **kwargs)
        return self._reference(*args, **kwargs)

    def kernel(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """By the Metal kernel."""
        self._check(*args, **kwargs)
        if not available():
            raise ValueError(f"[metal_kernels.{self.name}] the kernel needs Metal; none here")
        return self._kernel(*args, **kwargs)


@functools.cache
def read_source(file: str) -> str:
    """The text of a ``.metal`` file of this package."""
    return (_FOLDER / file).read_text(encoding="utf-8")


def build(
    name: str,
    file: str,
    sections: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    contiguous: bool = True,
) -> Kernel:
    """A kernel whose body is made of sections of a ``.metal`` file; built once.

    Args:
        name: of the kernel, in Metal's tools.
        file: the source beside this module.
        sections: parts of its body, in order.
        inputs, outputs: names of the arrays.
        contiguous: copy inputs that are not row contiguous; else the source uses their strides.
    """
    source = read_source(file)
    # Whoever replaces mx.fast.metal_kernel (a simulator) must not be given kernels of before.
    return _build(
        mx.fast.metal_kernel,
        name,
        source,
        tuple(sections),
        tuple(inputs),
        tuple(outputs),
        contiguous,
    )


@functools.cache
def _build(
    maker: Any,
    name: str,
    source: str,
    sections: tuple[str, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    contiguous: bool,
) -> Kernel:
    header, *parts = _SECTION.split(source)
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    kernel: Kernel = maker(
        name=name,
        input_names=list(inputs),
        output_names=list(outputs),
        header=header,
        source="".join(bodies[section] for section in sections),
        ensure_row_contiguous=contiguous,
    )
    return kernel


@functools.lru_cache(maxsize=256)
def scalar(value: float, dtype: mx.Dtype = mx.float32) -> mx.array:
    """A 0-d array, which a kernel receives as a constant."""
    return mx.array(value, dtype)


@functools.cache
def unread() -> mx.array:
    """Stands where an optional input would; the kernel never reads it."""
    return mx.ones((1,))
