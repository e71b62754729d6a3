"""What the commands say beside their results: notes, and what is loading."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from mlx_spec.cli.terminal import ERASE, marked
from mlx_spec.pipeline.progress import say

if TYPE_CHECKING:
    from mlx_spec.pipeline.flags import Flags


def note(text: str) -> None:
    """One line for the user, with our name before it."""
    say(f"{marked('mlx-spec:', sys.stderr)} {text}")


def saying(quiet: bool) -> Callable[[str], None]:
    """:func:`note`, or nothing."""
    return (lambda text: None) if quiet else note


def say_models(flags: Flags) -> None:
    """Which models stand in where none was named, and which are not used."""
    if flags.unused is not None:
        note(flags.unused)
    if flags.model is None:
        names = filter(None, (flags.target, flags.drafter))
        note(f"no --model given, using the embedded {' and '.join(names)}, toys that write Python")


@contextmanager
def status(text: str, quiet: bool = False) -> Iterator[None]:
    """``text`` on a line that goes away at the end: on a terminal, and nothing elsewhere.

    It is there at once; importing what could turn a wheel beside it takes seconds of its own.
    """
    shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
    if shown:
        print(f"{text} ...", end="", file=sys.stderr, flush=True)
    try:
        with _no_bars() if quiet else nullcontext():
            yield
    finally:
        if shown:
            print(ERASE, end="", file=sys.stderr, flush=True)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Downloads and long loads show none meanwhile: both are the hub's, for the whole process."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
