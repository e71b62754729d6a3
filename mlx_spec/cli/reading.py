"""How far the prompts are read, on one line of a terminal that goes away with the first token."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from mlx_spec.cli.terminal import ERASE
from mlx_spec.events import Event, PromptProgress

# Seconds before anything is shown (short prompts need no word), and between two looks.
_PATIENCE, _EVERY = 0.5, 0.2


class PromptLine:
    """A listener that draws the line; nothing is shown where ``out`` is no terminal.

    Args:
        out: where to draw: stderr unless given.
        quiet: show nothing.
    """

    def __init__(self, out: TextIO | None = None, quiet: bool = False) -> None:
        self._out = sys.stderr if out is None else out
        self._ended = quiet or self._out is None or not self._out.isatty()
        self._next = time.perf_counter() + _PATIENCE
        self._drawn = False

    def __call__(self, event: Event) -> None:
        """Draw, if it is time."""
        now = time.perf_counter()
        if self._ended or not isinstance(event, PromptProgress) or now < self._next:
            return
        self._next = now + _EVERY
        self._drawn = True
        share = event.fed / max(1, event.total)
        self._out.write(f"{ERASE}reading prompts: {share:.0%} of {event.total:,} tokens")
        self._out.flush()

    def end(self) -> None:
        """Take the line away for good: text follows. Doing it twice does no harm."""
        if self._drawn and not self._ended:
            self._out.write(ERASE)
            self._out.flush()
        self._ended = True
