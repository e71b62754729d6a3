"""``SpeculativeDecoder``: one ragged ``step()`` for everything.

Plain decoding is verification of zero drafts, and a batch of one is a batch. A step is one graph:
draft, verify in one target pass, accept each row's own number of tokens, roll back by assigning
lengths. The host reads one small array per step, and builds the next step's graph while this one
computes; if a row turns out to have finished, that graph is dropped before it was launched, so no
row is ever computed past its end.

The decoder knows tokens only. Texts, stop texts and queues belong to ``batching``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.pool import SlotSize
from mlx_spec.cache.usage import KVUsage, measure
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.control.draft_length import DraftLengthPolicy
from mlx_spec.control.estimates import StepReport
from mlx_spec.control.known_costs import PairCosts, recall
from mlx_spec.decoding.acceptance import count_accepted, refuse_nan
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.drafters.base import DraftContext, Drafter
from mlx_spec.decoding.flight import Flight, Plan, StepOutput
from mlx_spec.decoding.invariants import check_lengths, check_rows
from mlx_spec.decoding.members import Members
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.decoding.setup import make_drafter, make_policy
from mlx_spec.decoding.suspects import Suspects
from mlx_spec.errors import InvalidRequest
from mlx_spec.model.device_stream import DeviceStream
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence


class SpeculativeDecoder:
    """Decodes a changing batch of sequences, speculatively, exactly.

    Example::

        decoder = SpeculativeDecoder(model, draft_model=draft)
        decoder.add([Sequence(prompt=[1, 2, 3])])
        while decoder.busy:
            for output in decoder.step():
                print(output.sequence.index, output.tokens)

    Args:
        model: the target, any full-attention model loaded by mlx-lm.
        draft_model: a smaller model with the same token map, or None.
        drafter: another source of drafts, instead of ``draft_model``.
        speculation: whether and how far to draft.
        batching: rows and prefill size.
        policy: chooses draft lengths, instead of what ``speculation`` says.
        debug: check every row's K/V against a lone cache after every step (slow).

    Raises:
        UnsupportedModel: a model whose cache cannot roll back row by row.
    """

    def __init__(
        self,
        model: Any,
        *,
        draft_model: Any = None,
        drafter: Drafter | None = None,
        speculation: SpeculationConfig | None = None,
        batching: BatchingConfig | None = None,
        policy: DraftLengthPolicy | None = None,
        debug: bool = False,
    ) -> None:
        speculation = speculation or SpeculationConfig()
        self.batching = batching or BatchingConfig()
        self.device = DeviceStream()
        self.runner = ModelRunner(model, self.batching.batch_size)
        self.drafter = drafter or make_drafter(draft_model, speculation, self.batching)
        memory = PairCosts() if draft_model is None else recall(model, draft_model)
        self.policy = policy or make_policy(self.drafter, speculation, memory)
        self.meter = StepMeter()
        self.debug = debug
        self.draft_length = 0  # of the last step, in tokens: the longest of its rows'
        self.ready = 0.0  # when the last step's work was done (time.perf_counter)
        with self.device.work():
            self._state = BatchState()
        self._flight: Flight | None = None
        self._suspects = Suspects()
        self._members = Members(self.runner, self.drafter, self._state, self.meter, self.batching)

    @property
    def running(self) -> list[Sequence]:
        """Sequences that decode, in row order."""
        return list(self._state.sequences)

    @property
    def max_rows(self) -> int:
        """Most rows that run together; may be changed at any time.

        Fewer than run now lets nobody in until enough have left.
        """
        return self._members.max_rows

    @max_rows.setter
    def max_rows(self, rows: int) -> None:
        self._members.max_rows = rows
        for runner in self.runners:
            runner.pool.max_slots = max(rows, runner.pool.used)

    @property
    def runners(self) -> tuple[ModelRunner, ...]:
        """The models that run here: the target, and those of the drafter."""
        return (self.runner, *self.drafter.runners)

    @property
    def cost(self) -> RowCost:
        """Bytes that a row's caches take by its tokens, target and draft together."""
        return sum((runner.cost for runner in self.runners), RowCost())

    def kv_usage(self, limit: int = 0) -> KVUsage:
        """The K/V memory now; ``limit`` is what slots and rows kept aside may take, in bytes."""
        pools = [runner.pool for runner in self.runners]
        return replace(
            measure(pools, self._members.cached, self.batching.block_size),
            bytes_saved=self._members.kept_bytes,
            bytes_prefix=self._members.prefix_bytes,
            bytes_limit=limit,
        )

    def size_slots(self, size: SlotSize) -> None:
        """From the next change of members on, have slots of this size."""
        self._members.size = size

    def trim(self) -> None:
        """While nothing is left to do, give the memory of all slots back."""
        if self.busy:
            return
        with self.device.work():
            if self._flight is not None:
                mx.eval(self._flight.packed)
                self._flight = None
            self._members.change()
            for runner in self.runners:
                runner.pool.trim()

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """Ask between the layers of a prompt's pass whether all rows are about to be cancelled."""
        self._members.feeder.stopping = stopping

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """Tokens read, and all tokens, of the prompts that are being read or were last."""
        return self._members.feeder.progress

    @property
    def free_rows(self) -> int:
        """Sequences that may still be added."""
        return max(0, self.max_rows - self._members.staying - len(self._members.waiting))

    @property
    def busy(self) -> bool:
        """Whether a further :meth:`step` has something to do."""
        return self._members.staying > 0 or bool(self._members.waiting)

    def add(self, sequences: Seq[Sequence]) -> None:
        """Let sequences join at the next step.

        Raises:
            InvalidRequest: more sequences than free rows, or a token outside the vocabulary.
        """
        if len(sequences) > self.free_rows:
            raise InvalidRequest(
                f"[SpeculativeDecoder.add] {len(sequences)} sequences, {self.free_rows} free rows "
                f"of {self.max_rows} (batch_size)"
            )
        for sequence in sequences:
            self.check(sequence)
        self._members.waiting += sequences

    def check(self, sequence: Sequence) -> None:
        """Refuse a sequence that the target cannot read.

        Raises:
            InvalidRequest: a token id outside the vocabulary.
        """
        highest = max(sequence.prompt)
        if highest >= self.runner.vocabulary:
            raise InvalidRequest(
                f"[SpeculativeDecoder] prompt {sequence.index + 1} holds the token id {highest}; "
                f"the model's vocabulary has {self.runner.vocabulary}"
            )

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence leave now; what a step in flight computes for it is dropped."""
        self._members.leave(sequence)
        self._members.forget(sequence)

    def suspend(self, sequence: Sequence, *, save: bool) -> None:
        """Let a sequence leave that will be added again later, and go on as if it had stayed.

        Args:
            sequence: one that was added.
            save: keep its K/V (bytes until it returns: ``saved_bytes``); else they are computed
                again from its tokens.
        """
        self._members.leave(sequence, save=save)

    @property
    def saved_bytes(self) -> int:
        """Bytes of K/V kept for suspended sequences, or about to be."""
        return self._members.saved_bytes

    def drop_saved(self, sequence: Sequence) -> bool:
        """Give up what is kept of a suspended sequence; it goes on from its tokens all the same.

        Returns:
            Whether there was something to give up.
        """
        return self._members.forget(sequence)

    def step(self) -> list[StepOutput]:
        """Feed a chunk of waiting prompts, then advance every decoding row by one verify pass.

        Any thread may call it, one at a time.

        Returns:
            One output per row that emitted tokens, in row order; none while only prompts are fed.
        """
        with self.device.work():
            return self._step()

    def _step(self) -> list[StepOutput]:
        if self._flight is None:
            self._members.change()
            joined = self._members.fill()
            self._suspects.clear_slots(self._state, self.runner.pool)
            if not self._state.sequences or self._members.feeder.stopping():
                self.ready = time.perf_counter()
                return []
            self._launch(self._build(self._plan(), joined=joined))
        flight = self._flight
        assert flight is not None
        lengths = self._state.lengths  # as the step in flight leaves them
        before = ahead = None
        if self._members.settled:
            plan = self._plan()
            before = self._snapshot()
            ahead = self._build(plan, joined=False)
        outputs = self._collect(flight)
        self._flight = None
        if ahead is not None and before is not None:
            if self._members.leaving or self._suspects:
                self._restore(before)
            else:
                # Until the references go, launching would copy the whole cache.
                before.clear()
                self._launch(ahead)
                self.meter.ahead += 1
        if self.debug:
            check_lengths(lengths, self._state.sequences, self._members.leaving)
            check_rows(self.runner, self._state.sequences, self._members.leaving)
        return outputs

    def _plan(self) -> Plan:
        """What the next step may take, with room made for it.

        Asked before the snapshot: while that holds the old arrays of all layers, growing them
        would keep old and new side by side.
        """
        sequences = self._state.sequences
        gained = self._flight.width if self._flight else 0
        shortest = min(s.length for s in sequences) + (1 if gained else 0)
        longest = max(s.length for s in sequences) + gained
        lengths = self.policy.choose(sequences)
        if self._suspects:
            lengths = [0] * len(lengths)
        positions = longest + max(lengths) + 1
        for runner in self.runners:
            runner.pool.reserve(positions)
        self._state.reserve(positions)
        return Plan(lengths, shortest, longest)

    def _build(self, plan: Plan, *, joined: bool) -> Flight:
        """The graph of the next step; nothing is computed yet."""
        state, shortest, longest = self._state, plan.shortest, plan.longest
        context = DraftContext(
            state.tokens, state.lengths, shortest, longest, state.sampling, self.runner.vocabulary
        )
        lengths, read = self._draft_lengths(plan.lengths, context)
        count = max(lengths)
        positions = state.lengths[:, None] + mx.arange(count + 1, dtype=mx.int32)
        draft = self.drafter.propose(context, count)
        logits = self.runner.forward(
            Rows(
                mx.concatenate([state.pending(), draft], axis=1),
                state.lengths - 1,
                longest + count,
                uniform=shortest == longest,
            )
        )
        samples = state.sampling.choose(logits, positions)
        caps = None if min(lengths) == count else mx.array(lengths, mx.int32)
        accepted = refuse_nan(count_accepted(draft, samples, caps), logits)
        self.runner.commit(accepted + 1)
        state.append(samples, accepted)
        packed = mx.concatenate([accepted[:, None], samples], axis=1)
        # A plain step asks nothing of the drafter, whoever has just joined.
        return Flight(lengths, packed, clean=not read and not (joined and count))

    def _draft_lengths(self, lengths: list[int], context: DraftContext) -> tuple[list[int], int]:
        """How far to guess for each row, and how many tokens the drafter reads before that."""
        if max(lengths) == 0:
            return lengths, 0
        read = self.drafter.catch_up(context)
        covered = self.drafter.covers()
        return [k if known else 0 for k, known in zip(lengths, covered, strict=True)], read

    def _launch(self, flight: Flight) -> None:
        """Start computing a step without waiting for it."""
        state = self._state
        # Taken first: MLX's CPU build computes most of a graph before async_eval returns.
        flight.launched = time.perf_counter()
        # The drafter's caches too: nothing that a step emits may depend on what it has read.
        pools = [runner.pool.arrays for runner in self.runners]
        mx.async_eval(  # type: ignore[no-untyped-call]
            flight.packed, state.lengths, state.tokens, pools
        )
        self._flight = flight

    def _collect(self, flight: Flight) -> list[StepOutput]:
        """Wait for a step, and hand each row the tokens it gained."""
        # The one place where the host waits for the device.
        results = cast("list[list[int]]", flight.packed.tolist())
        self.ready = time.perf_counter()
        seconds = self.ready - flight.launched
        self.draft_length = max(flight.lengths)
        rows = self._state.sequences
        accepted = [max(0, result[0]) for result in results]
        outputs = []
        for sequence, (count, *samples), drafted in zip(rows, results, flight.lengths, strict=True):
            if sequence in self._members.leaving:
                continue
            if not self._suspects.judge(sequence, count):
                continue
            tokens = sequence.extend(samples[: count + 1])
            kept = max(0, min(count, len(tokens)))
            if sequence.finish_reason:
                # Guesses past the end were neither right nor wrong.
                drafted = min(drafted, len(tokens))
                self._members.leave(sequence)
            sequence.drafted += drafted
            sequence.accepted += kept
            sequence.steps += 1
            outputs.append(StepOutput(sequence, tokens, drafted, kept))
        self.policy.observe(StepReport(rows, flight.lengths, accepted, seconds, flight.clean))
        self.meter.step(flight.lengths, outputs, seconds)
        return outputs

    def _snapshot(self) -> dict[str, Any]:
        """All that building a step changes, by reference."""
        return {
            "state": (self._state.tokens, self._state.lengths),
            "target": self.runner.pool.snapshot(),
            "drafter": self.drafter.snapshot(),
        }

    def _restore(self, snapshot: dict[str, Any]) -> None:
        """Forget a step that was built and never launched."""
        self._state.tokens, self._state.lengths = snapshot["state"]
        self.runner.pool.restore(snapshot["target"])
        self.drafter.restore(snapshot["drafter"])
        self.policy.forget()
