"""How far a chain is, all its stages on one display: a line a stage, those to come among them.

On a terminal; a log and a notebook have one stage after another, as ``Progress`` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from mlx_spec.pipeline.progress import NotebookLine, Progress, make_bar

Loading = Callable[[str], AbstractContextManager[None]]


class ChainProgress(AbstractContextManager["ChainProgress"]):
    """Shows a chain's progress; a context manager.

    Args:
        stages: their names.
        quiet: show nothing.
    """

    def __init__(self, stages: Sequence[str], quiet: bool = False) -> None:
        self._stages, self._quiet = stages, quiet
        bar = None if quiet else make_bar()
        self._bar = None if isinstance(bar, NotebookLine) else bar
        self._tasks = [self._line(name) for name in stages] if self._bar is not None else []
        self._now: tuple[int, Progress] | None = None
        self._live = False

    def __exit__(self, *_: object) -> None:
        if self._now is not None:
            self._now[1].close()
        if self._bar is not None:
            self._bar.stop()

    def begin(self, number: int, total: int | None) -> Progress:
        """The watcher of a stage, from 0; the one before has ended."""
        if self._now is not None:
            self._now[1].close()
        name = self._stages[number]
        if self._bar is None:
            title = f"stage {number + 1} of {len(self._stages)}, {name}"
            progress = Progress(title, total, self._quiet)
        else:
            progress = Progress(name, total, bar=_StageLine(self, self._tasks[number]))
        self._now = number, progress
        return progress

    def skip(self, number: int, word: str) -> None:
        """A stage that does not run, and why."""
        if self._bar is not None:
            self._bar.update(self._tasks[number], figures=word)

    @contextmanager
    def loading(self, text: str, otherwise: Loading) -> Iterator[None]:
        """Say beside the stage what is loaded; ``otherwise`` says it where no line is shown yet."""
        if self._bar is None or not self._live or self._now is None:
            with otherwise(text):
                yield
            return
        self._bar.update(self._tasks[self._now[0]], figures=text)
        yield

    def start(self) -> Any:
        """Show the lines; returns what draws them."""
        if self._bar is not None and not self._live:
            self._bar.start()
            self._live = True
        return self._bar

    def _line(self, name: str) -> Any:
        assert self._bar is not None
        return self._bar.add_task(name, total=None, start=False, figures="")


class _StageLine:
    """One stage's line, as ``Progress`` uses a bar of its own."""

    def __init__(self, chain: ChainProgress, task: Any) -> None:
        self._chain, self._task = chain, task

    def add_task(self, title: str, *, total: int | None, figures: str) -> Any:
        """The line is there already; now it counts."""
        bar = self._chain.start()
        bar.start_task(self._task)
        bar.update(self._task, total=total, figures=figures)
        return self._task

    def start(self) -> None:
        """It is shown."""

    def update(self, task: Any, *, completed: int, figures: str) -> None:
        self._chain.start().update(task, completed=completed, figures=figures)

    def stop(self) -> None:
        """It stays, with its last figures, until the chain ends."""
