"""Counts what the steps did: time, tokens, draft lengths. Knows no mlx and no sequences' texts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields
from typing import Protocol

from mlx_spec.drafting import DrafterStats
from mlx_spec.results import GenerationStats


class Emitted(Protocol):
    """The part of a step's output that is counted."""

    @property
    def tokens(self) -> list[int]:
        """Emitted tokens."""
        ...

    @property
    def drafted(self) -> int:
        """Draft tokens verified."""
        ...

    @property
    def accepted(self) -> int:
        """How many of them were accepted."""
        ...

    @property
    def source(self) -> str:
        """Who guessed."""
        ...


@dataclass
class Rate:
    """Tokens and seconds of one kind of step."""

    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0


# Fewer steps than this say little about a speed.
FEWEST_STEPS = 4


@dataclass
class StepMeter:
    """Totals over the life of a decoder, and of the one that takes its place.

    Attributes:
        prompt_tokens, prompt_seconds: fed prompts, each token once.
        reused_tokens: of these, taken from the prefix cache.
        recomputed_tokens: fed again for rows that had been preempted.
        steps, row_steps: verify passes, and the same counted per row.
        ahead: steps that were built while the one before computed, and launched.
        tokens, seconds: emitted tokens and time of all steps.
        drafted, accepted: draft tokens verified, and accepted.
        draft_lengths: draft length -> steps that used it.
        computed: tokens that the target's passes took, those for nobody included.
        rectangles: the same if each row took as many as the longest of its step.
        packed: steps in which that was not so.
        filled: steps whose guesses were given to rows on the device, by how sure the draft was.
        drafters: what each drafter gave, by name.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    reused_tokens: int = 0
    recomputed_tokens: int = 0
    steps: int = 0
    row_steps: int = 0
    ahead: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    draft_lengths: Counter[int] = field(default_factory=Counter)
    computed: int = 0
    rectangles: int = 0
    packed: int = 0
    filled: int = 0
    drafters: dict[str, DrafterStats] = field(default_factory=dict)
    _rates: dict[int, dict[bool, Rate]] = field(
        default_factory=lambda: defaultdict(lambda: {False: Rate(), True: Rate()})
    )

    def go_on(self, other: StepMeter) -> None:
        """Have its totals."""
        for one in fields(self):
            setattr(self, one.name, getattr(other, one.name))

    def step(
        self, lengths: Seq[int], outputs: Seq[Emitted], seconds: float, computed: int | None = None
    ) -> None:
        """Count one step of ``len(lengths)`` rows, whose pass took so many tokens; None: all of the
        rows' rectangle."""
        rectangle = len(lengths) * (max(lengths) + 1)
        self.computed += rectangle if computed is None else computed
        self.rectangles += rectangle
        self.packed += computed not in (None, rectangle)
        tokens = sum(len(output.tokens) for output in outputs)
        self.drafted += sum(output.drafted for output in outputs)
        self.accepted += sum(output.accepted for output in outputs)
        self.steps += 1
        self.row_steps += len(outputs)
        self.tokens += tokens
        self.seconds += seconds
        self.draft_lengths[max(lengths)] += 1
        rate = self._rates[len(lengths)][max(lengths) > 0]
        rate.tokens += tokens
        rate.seconds += seconds
        rate.steps += 1
        drafts = [output for output in outputs if output.drafted]
        for output in drafts:
            by = self.drafters.get(output.source, DrafterStats())
            share = seconds / len(drafts)
            self.drafters[output.source] = by.plus(output.drafted, output.accepted, share)

    def stats(self, peak_memory: int) -> GenerationStats:
        """The totals as a record; ``peak_memory`` in bytes."""
        plain, speculative = self.speeds()
        return GenerationStats(
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused_tokens,
            recomputed_tokens=self.recomputed_tokens,
            generation_tokens=self.tokens,
            prompt_time=self.prompt_seconds,
            generation_time=self.seconds,
            peak_memory=peak_memory,
            steps=self.steps,
            drafted=self.drafted,
            accepted=self.accepted,
            row_steps=self.row_steps,
            draft_lengths=dict(sorted(self.draft_lengths.items())),
            computed=self.computed,
            rectangles=self.rectangles,
            packed_steps=self.packed,
            filled_steps=self.filled,
            plain_tps=plain,
            speculative_tps=speculative,
            drafters=dict(self.drafters),
        )

    def speeds(self) -> tuple[float | None, float | None]:
        """Tokens per second of steps without and with a draft, at one and the same batch size.

        The batch size with the most steps at which both kinds ran often enough; None for a kind
        that did not.
        """
        best = max(
            list(self._rates.values()),
            key=lambda kinds: (
                min(FEWEST_STEPS, kinds[False].steps, kinds[True].steps),
                kinds[False].steps + kinds[True].steps,
            ),
            default={False: Rate(), True: Rate()},
        )
        plain, speculative = (
            best[kind].tokens / best[kind].seconds if best[kind].steps >= FEWEST_STEPS else None
            for kind in (False, True)
        )
        return plain, speculative
