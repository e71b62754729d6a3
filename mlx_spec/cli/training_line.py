"""How far the making of a draft is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mlx_spec import interrupts
from mlx_spec.pipeline.progress import make_bar, say

if TYPE_CHECKING:
    from mlx_spec.training.acceptance import Acceptance
    from mlx_spec.training.loop import Standing

# Seconds between two lines in a log.
_EVERY = 10.0
_PARTS = 1000  # of a course, on a bar


class TrainingLine:
    """The ``watch`` of a making.

    Args:
        quiet: say nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None if quiet else make_bar()
        self._task: Any = None
        self._what, self._done, self._total = "", 0, 0
        self._started = self._shown = time.monotonic()

    def begin(self, what: str, total: int | None) -> None:
        """Work of a kind begins."""
        self._what, self._done, self._total = what, 0, total or _PARTS
        self._started = time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=self._total, figures="")
            self._bar.start()

    def more(self, amount: int) -> None:
        """So many tokens more."""
        self._done += amount
        seconds = max(1e-9, time.monotonic() - self._started)
        self._show(self._done, f"{self._done:,} tokens, {self._done / seconds:.0f} tok/s")

    def trained(self, progress: Standing, done: float) -> None:
        """A step."""
        speed = progress.tokens / max(1e-9, progress.seconds)
        text = f"step {progress.step:,}, loss {progress.loss:.3f}, {speed:.0f} tok/s, {done:.0%}"
        self._show(int(done * self._total), text)

    def measured(self, reached: dict[str, Acceptance]) -> None:
        """Held-out acceptance: of all, and greedily at the first position of each category."""
        if self._quiet:
            return
        greedy, shared = reached[""].rates if "" in reached else ([], [])
        by_category = ", ".join(
            f"{name} {each.rates[0][0]:.2f}" for name, each in reached.items() if name
        )
        say(
            f"held out: greedy {_rates(greedy)}, T=0.8 {_rates(shared)}"
            f"{f' ({by_category})' if by_category else ''}"
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _show(self, done: int, text: str) -> None:
        interrupts.check()
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=min(done, self._total), figures=text)
        elif time.monotonic() - self._shown >= _EVERY:
            self._shown = time.monotonic()
            say(f"mlx-spec: {self._what}: {text}")


def _rates(rates: list[float]) -> str:
    return " ".join(f"{rate:.2f}" for rate in rates)
