"""``Stepper``: what both drivers of a step share, beside the phases.

It owns the step in flight and knows the order of things at a step's edges: members change, a step
is planned, launched, read and noted, or forgotten before it was launched. It decides nothing about
who needs the host when: that is the difference between the drivers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import mlx.core as mx

from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.control.report import StepReport
from mlx_spec.decoding.acceptance import NO_NUMBERS
from mlx_spec.decoding.chunk_queue import ChunkQueue
from mlx_spec.decoding.flight import Flight, StepOutput, StepPlan
from mlx_spec.decoding.invariants import check_lengths, check_rows
from mlx_spec.decoding.members import Members
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.decoding.planning import plan_step
from mlx_spec.decoding.step import Proposal, StepParts
from mlx_spec.decoding.suspects import Suspects
from mlx_spec.decoding.timeline import Timeline
from mlx_spec.model.pace import on_cpu
from mlx_spec.sequence import Sequence

T = TypeVar("T")


def rows_cost() -> bool:
    """Whether a row more makes a step longer in proportion, as on a CPU."""
    return on_cpu()


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
        draft_length: of the last step, in tokens: the longest of its rows'.
        hear: who learns from steps beside the policy.
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
        self.draft_length = 0
        self.debug = False
        self.hear: Callable[[StepReport], None] = lambda report: None
        self.ranks = parts.runner.ranks
        self._timeline = Timeline(clock, at_once=not self.ranks.several)
        self._chunks = ChunkQueue(self._timeline, clock)
        # When the step that is being built was begun, and when what went before it was on its way.
        self._planned = self._described_from = 0.0
        self._build_seconds = self._step_seconds = 0.0  # of the last step that was built, and read

    def change(self) -> bool:
        """Let rows leave, join and be fed, behind a step in flight; whether any decode then."""
        flight = self.flight
        self.members.change(flying=flight.width if flight else 0)
        self._chunks.fed &= bool(self.parts.state.sequences)
        if not self._chunks.fed:
            self._chunks.add(self.members.fill())
        if flight is None:
            self._timeline.rest()
            self.suspects.clear_slots(self.parts.state, self.parts.runner)
        return bool(self.parts.state.sequences) and not self.members.feeder.stopping()

    @property
    def waits(self) -> bool:
        """Whether somebody needs the host within the next step, which is then taken in turn."""
        parts = self.parts
        runners = (parts.runner, *parts.drafter.runners)
        return (
            parts.drafter.needs_host
            or any(rule.needs_host for rule in parts.concerned)
            or any(runner.support.form.needs_host for runner in runners)
        )

    def builds(self) -> bool:
        """Whether the next step may be built now; where somebody has come who needs the host, this
        one is only read, and what was described to go before the next stays."""
        if self.waits:
            self._only_read()
            return False
        return True

    def puts_off(self) -> bool:
        """Whether the step that was planned behind another is taken in turn, since somebody needs
        the host within it after all: guesses are to be seen from now on. Seen here they would be
        waited for in the middle of a description, and the step in flight would seem to last so
        long."""
        if self.flight is None or not self.waits:
            return False
        self.policy.forget()
        self._only_read()
        return True

    def _only_read(self) -> None:
        """No step is built behind the one in flight."""
        self.parts.drafter.landing()
        self._chunks.keep()

    def feed_no_more(self) -> None:
        """Before the next tokens, where chunks were launched since the last ones."""
        self._chunks.close()

    @property
    def ready(self) -> float:
        """When the last work was done, in seconds of the clock."""
        return self._timeline.end

    def leave(self, sequence: Sequence, *, save: bool = False) -> None:
        """Let a sequence go; what a step in flight computes for it is nobody's."""
        self.members.leave(sequence, save=save)
        if self.flight is not None:
            self.flight.gone.add(sequence)

    def plan(self) -> StepPlan:
        """What the next step may take, with room made for it."""
        self._planned = self.clock()
        plain = bool(self.suspects)
        return plan_step(self.parts, self.policy, self.flight, self._chunks, plain=plain)

    def send(self) -> bool:
        """Launch the chunks that were described; whether all are on their way."""
        return self._chunks.launch(self.members.feeder.stopping)

    def show(self, plan: StepPlan, draft: Proposal, logits: mx.array) -> tuple[Proposal, float]:
        """Launch a draft and its verification, and read it for the rules that must see it.

        Returns:
            The draft, less what they say is none; and when it was launched.
        """
        begun = self.clock()
        if self.ranks.kind == "pipeline":  # as for ``Flight.first``
            mx.async_eval(draft.tokens)  # type: ignore[no-untyped-call]
        mx.async_eval(draft.tokens, logits)  # type: ignore[no-untyped-call]
        seeing = [rule for rule in self.parts.concerned if rule.needs_host]
        if seeing:
            read = cast("list[list[int]]", draft.tokens.tolist())
            guesses = [row[:most] for row, most in zip(read, draft.lengths, strict=True)]
            for rule in seeing:
                draft = draft.judged(rule.see(plan.rows, guesses))
        return draft, begun

    def launch(self, flight: Flight, begun: float | None = None) -> Flight:
        """Start computing a step, or its last phases, without waiting for it."""
        # Taken first: MLX's CPU build computes most of a graph before async_eval returns.
        flight.launched = self.clock() if begun is None else begun
        flight.waited = 0.0 if begun is None else begun - self._described_from
        parts = self.parts
        if flight.first:
            mx.async_eval(flight.first)  # type: ignore[no-untyped-call]
        # The drafter's caches too: nothing that a step emits may depend on what it has read.
        mx.async_eval(  # type: ignore[no-untyped-call]
            flight.wanted, parts.state.lengths, parts.state.seen, parts.state.tokens, self._pools()
        )
        self.flight = flight
        return flight

    def _pools(self) -> list[list[mx.array]]:
        """The arrays of all caches."""
        runners = (self.parts.runner, *self.parts.drafter.runners)
        return [runner.pool.arrays for runner in runners]

    def read(self, flight: Flight) -> None:
        """Wait for a step, and see who ends in it."""
        building = self.clock() - self._planned
        # The one place where the host waits for the device: for what was launched before, too.
        flight.clean = self._timeline.wait()
        flight.read()
        self.flight = None
        seconds = self._timeline.finish(flight.launched)
        told = self.meet((building, seconds, flight.waited, flight.clean))
        self._build_seconds, flight.seconds, flight.waited, flight.clean = told
        self._step_seconds = flight.seconds
        if flight.unread:
            self.meter.prompt_seconds += flight.part_of_prompts()
        for sequence, (count, _, *samples) in zip(flight.rows, flight.results, strict=True):
            if sequence in flight.gone:
                continue
            if not self.suspects.judge(sequence, count, unread=bool(flight.unread)):
                flight.gone.add(sequence)  # for this once
            elif sequence.finish_reason or sequence.ends(samples[: count + 1]):
                self.members.leave(sequence)

    def meet(self, told: T) -> T:
        """Once a step, where nothing is in the air: what was measured is rank 0's."""
        known = [(chunk.seconds, chunk.exact) for chunk in self._timeline.known]
        told, known = self.ranks.meet((told, known))
        self._timeline.tell(known)
        return told

    def holds(self, following: Flight) -> bool:
        """Whether a step that was built ahead is worth launching, now that the last one is read.

        Rows that have ended meanwhile are computed once past their end. On a GPU a few rows more
        or less hardly count, and an idle device does. A CPU computes row by row, and has nothing
        else to do while a step is built: there it is dropped if building it again takes less.
        """
        rows, ended = len(following.rows), len(self.members.leaving.intersection(following.rows))
        if self.suspects or 2 * ended >= rows:
            return False
        wasted = ended / rows * self._step_seconds if rows_cost() else 0.0
        return wasted <= self._build_seconds

    def emit(self, flight: Flight) -> list[StepOutput]:
        """Hand each row the tokens it gained; what is counted is counted here."""
        outputs, accepted = [], []
        of_rows = zip(flight.rows, flight.sources, flight.results, strict=True)
        for sequence, source, (count, drafted, *samples) in of_rows:
            accepted.append(NO_NUMBERS if sequence in flight.gone else count)
            if sequence in flight.gone:
                flight.outputs.append(None)
                continue
            held = sequence.length + count
            tokens = sequence.extend(samples[: count + 1])
            kept = max(0, min(count, len(tokens)))
            if sequence.finish_reason:
                # Guesses past the end were neither right nor wrong.
                drafted = min(drafted, len(tokens))
                self.members.held[sequence] = held
                self.leave(sequence)
            sequence.count(drafted, kept, source)
            outputs.append(StepOutput(sequence, tokens, drafted, kept, source))
            flight.outputs.append(outputs[-1])
        flight.hand_out()
        self.draft_length = max(flight.lengths)
        report = flight.report(accepted)
        self.policy.observe(report)
        self.hear(report)
        self.meter.step(flight.lengths, outputs, flight.seconds, flight.tokens)
        self.meter.ahead += flight.ahead
        self.meter.filled += flight.filled
        if self.debug:
            self.check(flight)
        return outputs

    def land(self) -> None:
        """Wait for what is in flight; nobody wants what it says, nor what was described."""
        self._chunks.clear()
        self._timeline.wait()
        if self.flight is not None:
            mx.eval(self.flight.packed)
            self.flight = None

    def snapshot(self) -> dict[str, Any]:
        """All that building a step changes, by reference."""
        parts = self.parts
        return {
            "state": (parts.state.tokens, parts.state.lengths, parts.state.seen),
            "opening": parts.state.opening,
            "target": parts.runner.pool.snapshot(),
            "drafter": parts.drafter.snapshot(),
        }

    @contextmanager
    def building(self) -> Iterator[dict[str, Any]]:
        """While a step is described: what is raised leaves everything as it was before."""
        before, self._described_from = self.snapshot(), self.clock()
        try:
            yield before
        except BaseException:
            self.restore(before)
            raise

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While a step that is launched already is described to its end: its pass is aborted.

        What was drafted for can stay, since a drafter is sure of known tokens only.
        """
        try:
            yield
        except BaseException:
            rows = len(self.parts.state.sequences)
            self.parts.runner.commit(mx.zeros(rows, mx.int32))
            self.policy.forget()
            self._chunks.close()
            raise

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Forget a step that was built and never launched."""
        parts = self.parts
        parts.state.tokens, parts.state.lengths, parts.state.seen = snapshot["state"]
        parts.state.opening = snapshot["opening"]
        parts.runner.pool.restore(snapshot["target"])
        parts.drafter.restore(snapshot["drafter"])
        self.policy.forget()
        self._chunks.undone()
        if self.flight is None and not self._chunks:
            # Nobody reads the caches now: copies of rows that moved need not wait for a step.
            mx.async_eval(self._pools())  # type: ignore[no-untyped-call]

    def check(self, flight: Flight) -> None:
        """What must hold after a step was read, whatever is in flight by now."""
        leaving, state = self.members.leaving, self.parts.state
        rows = [] if state.opening else state.sequences
        check_lengths(flight.known, flight.rows, flight.gone | leaving)
        check_rows(self.parts.runner, rows, leaving)
