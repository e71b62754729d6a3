"""``Stepper``: what both drivers of a step share, beside the phases.

It owns the step in flight and knows the order of things at a step's edges: members change, a step
is planned, launched, read and noted, or forgotten before it was launched. It decides nothing about
who needs the host when: that is the difference between the drivers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx

from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.control.report import StepReport
from mlx_spec.decoding.acceptance import NO_NUMBERS
from mlx_spec.decoding.flight import Flight, StepOutput, StepPlan
from mlx_spec.decoding.invariants import check_lengths, check_rows
from mlx_spec.decoding.members import Members
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.decoding.step import Proposal, StepParts
from mlx_spec.decoding.suspects import Suspects
from mlx_spec.sequence import Sequence


class Stepper:
    """The edges of steps.

    Args:
        parts: target, drafter and rows.
        members: who holds which slot.
        policy: chooses draft lengths.
        meter: counts.
        clock: seconds.

    Attributes:
        flight: the step that computes, if any.
        suspects: rows whose last logits were no numbers.
        ready: when the last step's work was done, in seconds of the clock.
        draft_length: of the last step, in tokens: the longest of its rows'.
        debug: check every row's K/V against a lone cache after every step (slow).
    """

    def __init__(
        self,
        parts: StepParts,
        members: Members,
        policy: DraftLengthPolicy,
        meter: StepMeter,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.parts, self.members, self.policy, self.meter = parts, members, policy, meter
        self.clock = clock
        self.flight: Flight | None = None
        self.suspects = Suspects()
        self.ready = 0.0
        self.draft_length = 0
        self.debug = False
        self._joined = False

    def change(self) -> bool:
        """Let rows leave, join and be fed, behind a step in flight; whether any decode then."""
        flight = self.flight
        self.members.change(flying=flight.width if flight else 0)
        self._joined |= self.members.fill()
        if flight is None:
            self.suspects.clear_slots(self.parts.state, self.parts.runner.pool)
        if self.parts.state.sequences and not self.members.feeder.stopping():
            return True
        self.ready = self.clock()
        return False

    def leave(self, sequence: Sequence, *, save: bool = False) -> None:
        """Let a sequence go; what a step in flight computes for it is nobody's."""
        self.members.leave(sequence, save=save)
        if self.flight is not None:
            self.flight.gone.add(sequence)

    def plan(self) -> StepPlan:
        """What the next step may take, with room made for it.

        Asked before the snapshot: while that holds the old arrays of all layers, growing them
        would keep old and new side by side.
        """
        state, flight = self.parts.state, self.flight
        rows = list(state.sequences)
        flying = flight.rows if flight else ()
        gains = {row: flight.width for row in flying if row not in flight.gone} if flight else {}
        shortest = min(row.length + (row in gains) for row in rows)
        longest = max(row.length + gains.get(row, 0) for row in rows)
        lengths = self.policy.choose(rows)
        if self.suspects:
            lengths = [0] * len(lengths)
        positions = longest + max(lengths) + 1
        for runner in (self.parts.runner, *self.parts.drafter.runners):
            runner.pool.reserve(positions)
        state.reserve(positions)
        joined, self._joined = self._joined, False
        return StepPlan(rows, lengths, shortest, longest, joined)

    def launch(self, flight: Flight, *, ahead: bool = False) -> Flight:
        """Start computing a step without waiting for it; ``ahead`` if another one hid its build."""
        flight.ahead = ahead
        # Taken first: MLX's CPU build computes most of a graph before async_eval returns.
        flight.launched = self.clock()
        flight.gone |= self.members.leaving
        parts = self.parts
        # The drafter's caches too: nothing that a step emits may depend on what it has read.
        pools = [runner.pool.arrays for runner in (parts.runner, *parts.drafter.runners)]
        mx.async_eval(  # type: ignore[no-untyped-call]
            flight.packed, parts.state.lengths, parts.state.tokens, pools
        )
        self.flight = flight
        return flight

    def show(self, plan: StepPlan, draft: Proposal, logits: mx.array) -> None:
        """Read the draft for the rules that must see it, while the target computes."""
        mx.async_eval(draft.tokens, logits)  # type: ignore[no-untyped-call]
        seeing = [rule for rule in self.parts.rules if rule.needs_host]
        if seeing:
            guesses = cast("list[list[int]]", draft.tokens.tolist())
            for rule in seeing:
                rule.see(plan.rows, guesses)

    def read(self, flight: Flight) -> None:
        """Wait for a step, and see who ends in it."""
        # The one place where the host waits for the device.
        flight.results = cast("list[list[int]]", flight.packed.tolist())
        self.flight = None
        self.ready = self.clock()
        for sequence, (count, *samples) in zip(flight.rows, flight.results, strict=True):
            if sequence in flight.gone:
                continue
            if not self.suspects.judge(sequence, count):
                flight.gone.add(sequence)  # for this once
            elif sequence.finish_reason or sequence.ends(samples[: count + 1]):
                self.members.leave(sequence)

    def holds(self, following: Flight) -> bool:
        """Whether a step that was built ahead is worth launching, now that the last one is read.

        Rows that have ended meanwhile are computed once past their end.
        """
        ended = len(self.members.leaving.intersection(following.rows))
        return not self.suspects and 2 * ended < len(following.rows)

    def emit(self, flight: Flight) -> list[StepOutput]:
        """Hand each row the tokens it gained; what is counted is counted here."""
        outputs, accepted = [], []
        for sequence, (count, *samples), drafted in zip(
            flight.rows, flight.results, flight.lengths, strict=True
        ):
            accepted.append(NO_NUMBERS if sequence in flight.gone else count)
            if sequence in flight.gone:
                continue
            tokens = sequence.extend(samples[: count + 1])
            kept = max(0, min(count, len(tokens)))
            if sequence.finish_reason:
                # Guesses past the end were neither right nor wrong.
                drafted = min(drafted, len(tokens))
                self.leave(sequence)
            sequence.count(drafted, kept)
            outputs.append(StepOutput(sequence, tokens, drafted, kept))
        seconds = self.ready - flight.launched
        self.draft_length = max(flight.lengths)
        report = StepReport(flight.rows, flight.lengths, accepted, seconds, flight.clean)
        self.policy.observe(report)
        self.meter.step(flight.lengths, outputs, seconds)
        self.meter.ahead += flight.ahead
        if self.debug:
            self.check(flight)
        return outputs

    def land(self) -> None:
        """Wait for a step in flight; nobody wants what it says."""
        if self.flight is not None:
            mx.eval(self.flight.packed)
            self.flight = None

    def snapshot(self) -> dict[str, Any]:
        """All that building a step changes, by reference."""
        parts = self.parts
        return {
            "state": (parts.state.tokens, parts.state.lengths),
            "target": parts.runner.pool.snapshot(),
            "drafter": parts.drafter.snapshot(),
        }

    def restore(self, snapshot: dict[str, Any], plan: StepPlan) -> None:
        """Forget a step that was built and never launched."""
        parts = self.parts
        parts.state.tokens, parts.state.lengths = snapshot["state"]
        parts.runner.pool.restore(snapshot["target"])
        parts.drafter.restore(snapshot["drafter"])
        self.policy.forget()
        self._joined = plan.joined

    def check(self, flight: Flight) -> None:
        """What must hold after a step was read, whatever is in flight by now."""
        leaving, rows = self.members.leaving, self.parts.state.sequences
        check_lengths(flight.known, flight.rows, flight.gone | leaving)
        check_rows(self.parts.runner, rows, leaving)
