"""How far a run of many records is: a bar on a terminal, a line now and then elsewhere.

Everything goes to stderr; stdout may carry the records.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_spec.pipeline.runner import Tally
    from mlx_spec.results import GenerationStats

# Seconds between two looks on a terminal, and between two lines in a log.
_TERMINAL, _LOG = 0.2, 10.0


def say(line: str) -> None:
    """A line on stderr, if it takes one: a full disk under a log must not end a run."""
    if sys.stderr is None:  # where print would take stdout, which may carry the records
        return
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def note(text: str) -> None:
    """One line for the user, with our name before it."""
    say(f"mlx-spec: {text}")


class Progress:
    """Shows one stage's progress; a context manager, and the ``watch`` of ``process``.

    Args:
        title: what runs.
        total: records, or None where nobody knows (stdin).
        quiet: show nothing.
    """

    def __init__(self, title: str, total: int | None, quiet: bool = False) -> None:
        self._title, self._total, self._quiet = title, total, quiet
        self._started: float | None = None
        self._shown = time.perf_counter()
        self._bar: Any = None
        self._every = _LOG
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            self._bar, self._every = _make_bar(), _TERMINAL

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, tally: Tally, stats: Callable[[], GenerationStats]) -> None:
        """Show what there is, if it is time."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now
            self._open()
        if self._quiet or now - self._shown < self._every:
            return
        self._shown = now
        done = tally.skipped + tally.written
        text = figures(tally, stats(), now - self._started)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=text)
        else:
            total = "" if self._total is None else f"/{self._total}"
            note(f"{self._title}: {done}{total} records, {text}")

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
        parts.append(f"{stats.prompt_tokens / seconds:.0f} scored tok/s")
    if stats.drafted:
        parts.append(f"acceptance {stats.acceptance_rate:.0%}")
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    return ", ".join(parts)


def _make_bar() -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[figures]}"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
