"""``Plan``: which part of the grid is measured, and how long that takes here. No mlx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mlx_spec.bench.options import BenchOptions
from mlx_spec.bench.prompts import KINDS

WARM_TOKENS = 8
"""Tokens of each prompt in runs that do not count."""


@dataclass(frozen=True)
class FirstLook:
    """What this machine takes, as a first look has it.

    Attributes:
        steps: seconds of a plain decoding step, by rows.
        prompt: seconds of a prompt's token.
    """

    steps: dict[int, float]
    prompt: float

    def step(self, rows: int) -> float:
        """Seconds of a step with so many rows: on a line between what was looked at."""
        known = sorted(self.steps)
        low = max((one for one in known if one <= rows), default=known[0])
        high = min((one for one in known if one >= rows), default=known[-1])
        if low == high:
            return self.steps[low] * max(1.0, rows / high)
        share = (rows - low) / (high - low)
        return self.steps[low] + share * (self.steps[high] - self.steps[low])


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        batches: rows.
        lengths: of prompts, in tokens; (None,) where they are as they are.
        rounds: times that everything runs.
        tokens: generated, at most, of each prompt.
        prompts: of a cell, at least; as many as rows where these are more.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    lengths: tuple[int | None, ...] = (128,)
    rounds: int = 5
    tokens: int = 64
    prompts: int = len(KINDS)

    @property
    def cells(self) -> list[tuple[int, int | None]]:
        """(rows, length of prompts), all of them."""
        return [(batch, length) for length in self.lengths for batch in self.batches]

    def count(self, batch: int) -> int:
        """Prompts of a cell."""
        return max(batch, self.prompts)

    def run_seconds(self, pace: FirstLook, batch: int, length: int) -> float:
        """Of one run of a cell without drafts."""
        return _seconds(pace, self.count(batch), batch, length, self.tokens)

    def warm_seconds(self, pace: FirstLook, batch: int, length: int) -> float:
        """Of one run that does not count: as many prompts as rows, and few tokens."""
        return _seconds(pace, batch, batch, length, WARM_TOKENS)

    def seconds(self, pace: FirstLook, arms: Callable[[int], int], usual: int) -> float:
        """Of all runs together, as if drafts neither won nor lost.

        Args:
            pace: of this machine.
            arms: what is compared at so many rows.
            usual: tokens of a prompt where ``lengths`` does not say.
        """
        shortest = min((usual if one is None else one) for one in self.lengths)
        total = 0.0
        for batch in self.batches:
            uncounted = arms(batch) - 1  # but of the same again
            total += uncounted * self.warm_seconds(pace, batch, shortest)
        for batch, length in self.cells:
            length = usual if length is None else length
            each = self.run_seconds(pace, batch, length)
            total += self.rounds * arms(batch) * each
        return total


def _seconds(pace: FirstLook, count: int, batch: int, length: int, tokens: int) -> float:
    """Of so many prompts, as many at a time as there are rows."""
    return count * length * pace.prompt + -(-count // batch) * tokens * pace.step(batch)


_FULL: dict[str, Any] = {"lengths": (16, 128, 512, 2048), "tokens": 128}
_QUICK: dict[str, Any] = {"batches": (1, 8), "rounds": 3, "tokens": 32}
_QUICK_MINUTES = 0.5
# What is given up, one after the other, until the rest fits: two sizes in the middle before the
# length of texts, and three rounds to the last, since fewer say nothing about noise.
_CUTS: tuple[dict[str, Any], ...] = (
    {"rounds": 3},
    {"batches": (1, 4, 16)},
    {"tokens": 48},
    {"batches": (1, 8)},
    {"tokens": 32},
    {"prompts": 2},
    {"batches": (1,)},
    {"tokens": 16},
)


def make_plan(
    options: BenchOptions, pace: FirstLook, arms: Callable[[int], int], usual: int, built_in: bool
) -> Plan:
    """All that was asked for, and of the rest what fits into the time.

    Args:
        options: what was asked for.
        pace, arms, usual: as for ``Plan.seconds``.
        built_in: whether the prompts are ours, and can be made of any length.
    """
    start, given = first_plan(options, built_in)
    if options.full:
        return start
    seconds = 60 * (min(options.minutes, _QUICK_MINUTES) if options.quick else options.minutes)
    plan = start
    for cut in _CUTS:
        if plan.seconds(pace, arms, usual) <= seconds:
            break
        (name, value) = next(iter(cut.items()))
        if name not in given and _less(getattr(plan, name), value):
            plan = replace(plan, **cut)
    return plan


def within_context(plan: Plan, context: int | None) -> Plan:
    """Without prompts that leave a model no room for what is generated; the shortest ones stay."""
    if context is None:
        return plan
    fitting = [n for n in plan.lengths if n is None or n + plan.tokens <= context]
    return replace(plan, lengths=tuple(fitting) or plan.lengths[:1])


def first_plan(options: BenchOptions, built_in: bool) -> tuple[Plan, set[str]]:
    """What would be measured if time were no matter, and the names in it that were asked for."""
    given: dict[str, Any] = {
        "batches": options.batches,
        "lengths": options.lengths,
        "rounds": options.rounds,
        "tokens": options.max_tokens,
    }
    given = {name: value for name, value in given.items() if value}
    usual = _FULL if options.full else _QUICK if options.quick else {}
    plan = replace(Plan(), **{**usual, **given})
    if not built_in:
        plan = replace(plan, lengths=(None,))
    return plan, set(given)


def _less(have: Any, value: Any) -> bool:
    """Whether a cut is one: a plan may be smaller already."""
    return len(value) < len(have) if isinstance(value, tuple) else value < have
