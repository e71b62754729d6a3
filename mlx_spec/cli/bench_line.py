"""How far a benchmark is: a bar with the time that is left; a line now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from mlx_spec import interrupts
from mlx_spec.cli.notes import note, status
from mlx_spec.pipeline.progress import make_bar, say

if TYPE_CHECKING:
    from mlx_spec.bench.plan import Plan

# Seconds between two lines in a log.
_EVERY = 10.0
_TRUST = 0.1  # of the plan: what it foresaw counts as so much that is done


class BenchLine:
    """The ``watch`` of a benchmark.

    Args:
        quiet: say nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._started = self._shown = time.monotonic()
        self._done, self._total = 0.0, 1.0

    def loading(self, text: str) -> AbstractContextManager[None]:
        """A line that goes away."""
        return status(text, self._quiet)

    def tell(self, text: str) -> None:
        """A note."""
        if not self._quiet:
            note(text)

    def planned(self, plan: Plan, seconds: float, cut: bool) -> None:
        """The plan in a line, and the bar begins."""
        self.close()
        self._started = self._shown = time.monotonic()
        self._done, self._total = 0.0, max(seconds, 1e-9)
        rows = ", ".join(map(str, plan.batches))
        lengths = ", ".join(str(one) for one in plan.lengths if one is not None)
        prompts = f"prompts of about {lengths} tokens" if lengths else "your prompts"
        self.tell(
            f"{rows} at a time, {prompts}, {plan.tokens} tokens each, "
            f"{plan.rounds} round{'s' if plan.rounds != 1 else ''}: "
            f"about {in_words(seconds)} (Ctrl-C shows what is known by then"
            f"{'; --minutes or --full measure more' if cut else ''})"
        )
        self._bar = None if self._quiet else make_bar(counted=False)
        if self._bar is not None:
            self._task = self._bar.add_task("measuring", total=self._total, figures="")
            self._bar.start()

    def ran(self, what: str, seconds: float) -> None:
        """A run more; what is left is as slow, against the plan, as what is done."""
        interrupts.check()
        self._done += seconds
        now = time.monotonic()
        early = _TRUST * self._total
        each = (now - self._started + early) / (self._done + early)
        left = f"about {in_words(max(0.0, self._total - self._done) * each)} left"
        if self._bar is not None:
            done = min(self._done, self._total)
            self._bar.update(self._task, completed=done, figures=f"{left}; {what}")
        elif not self._quiet and now - self._shown >= _EVERY:
            self._shown = now
            share = min(0.99, self._done / self._total)  # the plan is a guess
            say(f"mlx-spec: {share:.0%}, {left}; {what}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def in_words(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 90:
        return f"{minutes} min" + (f" {rest} s" if minutes < 10 and rest else "")
    return f"{minutes / 60:.1f} hours"
