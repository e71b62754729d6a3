"""How far a run of many records is: a bar on a terminal, one line that changes in a notebook, a
line now and then elsewhere.

Everything but a notebook's line goes to stderr; stdout may carry the records. No mlx.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_spec.pipeline.stage_runner import Tally
    from mlx_spec.results import GenerationStats

# Seconds between two looks on a screen, and between two lines in a log.
_SCREEN, _LOG = 0.2, 10.0


def say(line: str) -> None:
    """A line on stderr, if it takes one: a full disk under a log must not end a run."""
    if sys.stderr is None:  # where print would take stdout, which may carry the records
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # What could not be written stays in its buffer, and python would fail over it at exit.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)


class Progress(AbstractContextManager["Progress"]):
    """Shows one stage's progress; a context manager, and the ``watch`` of ``process``.

    Args:
        title: what runs.
        total: records, or None where nobody knows (stdin).
        quiet: show nothing.
        bar: what shows it; None: what suits the place.
    """

    def __init__(
        self, title: str, total: int | None, quiet: bool = False, *, bar: Any = None
    ) -> None:
        self._title, self._total, self._quiet = title, total, quiet
        self._started: float | None = None
        self._shown = time.perf_counter()
        self._last: tuple[Tally, Callable[[], GenerationStats]] | None = None
        self._bar = bar or (None if quiet else make_bar())
        self._every = _LOG if self._bar is None else _SCREEN

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away. Doing it twice does no harm."""
        if self._bar is not None:
            if self._last is not None:
                self._show(*self._last, time.perf_counter())
            self._bar.stop()

    def __call__(self, tally: Tally, stats: Callable[[], GenerationStats]) -> None:
        """Show what there is, if it is time."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now
            self._open()
        self._last = tally, stats
        if not self._quiet and now - self._shown >= self._every:
            self._show(tally, stats, now)

    def _show(self, tally: Tally, stats: Callable[[], GenerationStats], now: float) -> None:
        self._shown = now
        done = tally.skipped + tally.written
        text = figures(tally, stats(), now - (self._started or now))
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=text)
        else:
            total = "" if self._total is None else f"/{self._total}"
            say(f"mlx-spec: {self._title}: {done}{total} records, {text}")

    def _open(self) -> None:
        # At the first record only: loading models has a spinner of its own.
        if self._bar is not None:
            self._task = self._bar.add_task(self._title, total=self._total, figures="")
            self._bar.start()


def figures(tally: Tally, stats: GenerationStats, seconds: float) -> str:
    """Speeds and acceptance in one line."""
    seconds = max(seconds, 1e-9)
    parts = [f"{tally.written / seconds:.1f} items/s"]
    if stats.generation_tokens:
        parts.append(f"{stats.generation_tokens / seconds:.0f} tok/s")
    elif stats.prompt_tokens:
        parts.append(f"{stats.prompt_tokens / seconds:.0f} prompt tok/s")
    if stats.drafted:
        parts.append(f"acceptance {stats.acceptance_rate:.0%}")
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    return ", ".join(parts)


class NotebookLine:
    """One line under a cell, with a bar; it changes in place.

    It has those methods of rich's progress that we use. rich's own needs ipywidgets, in the
    kernel and in the browser; HTML needs nothing.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._title = ""
        self._total: int | None = None

    def add_task(self, title: str, *, total: int | None, figures: str) -> int:
        """What runs, and how many records it has."""
        self._title, self._total = title, total
        return 0

    def start(self) -> None:
        from IPython.display import HTML, display

        self._handle = display(HTML(self._html(0, "")), display_id=True)

    def update(self, task: int, *, completed: int, figures: str) -> None:
        from IPython.display import HTML

        if self._handle is not None:
            self._handle.update(HTML(self._html(completed, figures)))

    def stop(self) -> None:
        """It stays as it is."""

    def _html(self, done: int, text: str) -> str:
        known = self._total is not None
        bar = f'<progress value="{done}" max="{self._total}"></progress> ' if known else ""
        total = f"/{self._total}" if known else ""
        return f"<div>{escape(self._title)} {bar}{done}{total} {escape(text)}</div>"


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def make_bar(counted: bool = True) -> Any:
    """What shows progress here; None for lines in a log.

    Args:
        counted: what is done are things of about the same size: their number is shown, and the
            time that is left.
    """
    if _in_notebook():
        return NotebookLine()
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *([progress.MofNCompleteColumn()] if counted else []),
        progress.TextColumn("{task.fields[figures]}"),
        *([progress.TimeRemainingColumn()] if counted else []),
        console=Console(stderr=True),
        transient=True,
    )
