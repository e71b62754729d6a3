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
from mlx_spec.decoding.flight import Flight, Plan, StepOutput
from mlx_spec.decoding.invariants import check_lengths, check_rows
from mlx_spec.decoding.members import Members
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.decoding.step import Proposal, StepParts
from mlx_spec.decoding.suspects import Suspects
from mlx_spec.model.pace import Chunk


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
        """Let rows leave, join and be fed; whether any decode now."""
        self.members.change()
        self._joined = self.members.fill()
        self.suspects.clear_slots(self.parts.state, self.parts.runner.pool)
        if self.parts.state.sequences and not self.members.feeder.stopping():
            return True
        self.ready = self.clock()
        return False

    def plan(self) -> Plan:
        """What the next step may take, with room made for it.

        Asked before the snapshot: while that holds the old arrays of all layers, growing them
        would keep old and new side by side.
        """
        state = self.parts.state
        rows = list(state.sequences)
        gained = self.flight.width if self.flight else 0
        shortest = min(row.length for row in rows) + (1 if gained else 0)
        longest = max(row.length for row in rows) + gained
        lengths = self.policy.choose(rows)
        if self.suspects:
            lengths = [0] * len(lengths)
        positions = longest + max(lengths) + 1
        for runner in (self.parts.runner, *self.parts.drafter.runners):
            runner.pool.reserve(positions)
        state.reserve(positions)
        lengths, reading = self._read_ahead(lengths)
        joined, self._joined = self._joined, False
        return Plan(rows, lengths, shortest, longest, joined, reading)

    def _read_ahead(self, lengths: list[int]) -> tuple[list[int], Chunk | None]:
        """Draft lengths of the rows that the drafter covers, once it reads on for the others."""
        if max(lengths) == 0:  # a plain step asks nothing of the drafter
            return lengths, None
        reading = self.parts.drafter.feed(1 if self.flight else 0)
        covered = self.parts.drafter.covers()
        if covered is not None:
            lengths = [k if known else 0 for k, known in zip(lengths, covered, strict=True)]
        return lengths, reading

    def launch(self, flight: Flight) -> Flight:
        """Start computing a step without waiting for it."""
        # Taken first: MLX's CPU build computes most of a graph before async_eval returns.
        flight.launched = self.clock()
        parts = self.parts
        if flight.reading is not None:
            flight.reading.launch(self.members.feeder.stopping)
            flight.reading = None
        # The drafter's caches too: nothing that a step emits may depend on what it has read.
        pools = [runner.pool.arrays for runner in (parts.runner, *parts.drafter.runners)]
        mx.async_eval(  # type: ignore[no-untyped-call]
            flight.packed, parts.state.lengths, parts.state.tokens, pools
        )
        self.flight = flight
        return flight

    def show(self, plan: Plan, draft: Proposal, logits: mx.array) -> None:
        """Read the draft for the rules that must see it, while the target computes."""
        mx.async_eval(draft.tokens, logits)  # type: ignore[no-untyped-call]
        seeing = [rule for rule in self.parts.rules if rule.needs_host]
        if seeing:
            guesses = cast("list[list[int]]", draft.tokens.tolist())
            for rule in seeing:
                rule.see(plan.rows, guesses)

    def read(self, flight: Flight) -> list[StepOutput]:
        """Wait for a step, and hand each row the tokens it gained."""
        # The one place where the host waits for the device.
        results = cast("list[list[int]]", flight.packed.tolist())
        self.flight = None
        self.ready = self.clock()
        seconds = self.ready - flight.launched
        self.draft_length = max(flight.lengths)
        accepted = [max(0, result[0]) for result in results]
        counted = [result[1] for result in results]
        outputs = []
        for sequence, (count, drafted, *samples) in zip(flight.rows, results, strict=True):
            if sequence in self.members.leaving:
                continue
            if not self.suspects.judge(sequence, count):
                continue
            tokens = sequence.extend(samples[: count + 1])
            kept = max(0, min(count, len(tokens)))
            if sequence.finish_reason:
                # Guesses past the end were neither right nor wrong.
                drafted = min(drafted, len(tokens))
                self.members.leave(sequence)
            sequence.count(drafted, kept)
            outputs.append(StepOutput(sequence, tokens, drafted, kept))
        self.policy.observe(
            StepReport(
                flight.rows, counted, accepted, seconds, flight.clean, longest=self.draft_length
            )
        )
        self.meter.step(flight.lengths, outputs, seconds)
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

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Forget a step that was built and never launched."""
        parts = self.parts
        parts.state.tokens, parts.state.lengths = snapshot["state"]
        parts.runner.pool.restore(snapshot["target"])
        parts.drafter.restore(snapshot["drafter"])
        self.policy.forget()

    def check(self, flight: Flight) -> None:
        """In debug mode: what must hold after a step was read."""
        if self.debug:
            leaving, rows = self.members.leaving, self.parts.state.sequences
            check_lengths(flight.known, flight.rows, leaving)
            check_rows(self.parts.runner, rows, leaving)
