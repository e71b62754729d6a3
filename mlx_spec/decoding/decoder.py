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
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, cast

import mlx.core as mx

from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding.acceptance import count_accepted
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.draft_length import (
    AdaptiveDraftLength,
    DraftLengthPolicy,
    FixedDraftLength,
    StepReport,
)
from mlx_spec.decoding.drafters.base import DraftContext, Drafter
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.drafters.none import NoDraft
from mlx_spec.decoding.invariants import check_lengths, check_rows
from mlx_spec.decoding.memory import PairMemory, recall
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.errors import InvalidRequest
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence

# The host bounds what it cannot know yet; the drafts of two steps may be in the air at once.
STEPS_IN_AIR = 2


@dataclass(frozen=True)
class StepOutput:
    """What one step emitted for one sequence.

    Attributes:
        sequence: the sequence; its ``finish_reason`` is set if it ended in this step.
        tokens: the emitted tokens, at least one.
        accepted: how many of them, from the first on, the drafter proposed.
    """

    sequence: Sequence
    tokens: list[int]
    accepted: int


@dataclass
class _Flight:
    """A step that was built, and perhaps launched."""

    lengths: list[int]
    packed: mx.array  # [B, K + 2] int32: accepted count, then the target's samples
    clean: bool  # its time tells what such a step costs
    launched: float = 0.0

    @property
    def width(self) -> int:
        """Tokens that a row may gain at most."""
        return int(self.packed.shape[1]) - 1


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
        self.runner = ModelRunner(model, self.batching.batch_size)
        self.drafter = drafter or _make_drafter(draft_model, speculation, self.batching)
        memory = PairMemory() if draft_model is None else recall(model, draft_model)
        self.policy = policy or _make_policy(self.drafter, speculation, memory)
        self.meter = StepMeter()
        self.debug = debug
        self._state = BatchState()
        self._flight: _Flight | None = None
        self._waiting: list[Sequence] = []
        self._leaving: set[Sequence] = set()

    @property
    def running(self) -> list[Sequence]:
        """Sequences in slots, in row order."""
        return list(self._state.sequences)

    @property
    def free_rows(self) -> int:
        """Sequences that may still be added."""
        staying = len(self._state) - len(self._leaving)
        return self.batching.batch_size - staying - len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a further :meth:`step` has something to do."""
        return len(self._state) > len(self._leaving) or bool(self._waiting)

    def add(self, sequences: Seq[Sequence]) -> None:
        """Let sequences join at the next step.

        Raises:
            InvalidRequest: more sequences than free rows, or a token outside the vocabulary.
        """
        if len(sequences) > self.free_rows:
            raise InvalidRequest(
                f"[SpeculativeDecoder.add] {len(sequences)} sequences, {self.free_rows} free rows "
                f"of {self.batching.batch_size} (batch_size)"
            )
        for sequence in sequences:
            self.check(sequence)
        self._waiting += sequences

    def check(self, sequence: Sequence) -> None:
        """Refuse a sequence that the target cannot read.

        Raises:
            InvalidRequest: a token id outside the vocabulary.
        """
        highest = max(sequence.prompt)
        if highest >= self.runner.vocabulary:
            raise InvalidRequest(
                f"[SpeculativeDecoder] prompt {sequence.index} holds the token id {highest}; "
                f"the model's vocabulary has {self.runner.vocabulary}"
            )

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence leave now; what a step in flight computes for it is dropped."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence in self._state.sequences:
            self._leaving.add(sequence)

    def step(self) -> list[StepOutput]:
        """Advance every running row by one verify pass.

        Returns:
            One output per row that emitted tokens, in row order.
        """
        if self._flight is None:
            joined = self._change_members()
            if not self._state.sequences:
                return []
            self._launch(self._build(joined=joined > 0))
        flight = self._flight
        assert flight is not None
        settled = not (self._waiting or self._leaving)
        lengths = self._state.lengths  # as the step in flight leaves them
        before = self._snapshot() if settled else None
        ahead = self._build(joined=False) if settled else None
        outputs = self._collect(flight)
        self._flight = None
        if ahead is not None and before is not None:
            if self._leaving:
                self._restore(before)
            else:
                # Until the references go, launching would copy the whole cache.
                before.clear()
                self._launch(ahead)
        if self.debug:
            check_lengths(lengths, self._state.sequences, self._leaving)
            check_rows(self.runner, self._state.sequences, self._leaving)
        return outputs

    def _change_members(self) -> int:
        """Let rows leave and join; return the number of prompt tokens fed."""
        started = time.perf_counter()
        leaving = [i for i, s in enumerate(self._state.sequences) if s in self._leaving]
        order = list(range(len(self._state)))
        if leaving:
            for source, destination in self.runner.pool.release(leaving):
                order[destination] = order[source]
            order = order[: self.runner.pool.used]
            self.drafter.leave(leaving)
            self._leaving.clear()
        # Neighbours of similar length share prefill passes with little padding.
        newcomers = sorted(self._waiting, key=lambda sequence: sequence.length)
        self._waiting.clear()
        if leaving or newcomers:
            self._state.rearrange(order, newcomers)
        fed = self._admit(newcomers) if newcomers else 0
        if fed:
            self.meter.prefill(fed, time.perf_counter() - started)
        return fed

    def _admit(self, newcomers: Seq[Sequence]) -> int:
        """Give newcomers slots and feed their prompts but for the last token."""
        pool = self.runner.pool
        first = pool.acquire(len(newcomers))
        longest = max(sequence.length for sequence in self._state.sequences)
        pool.reserve(longest + STEPS_IN_AIR)
        self._state.reserve(longest + STEPS_IN_AIR)
        self.drafter.join([sequence.length for sequence in newcomers], longest)
        for begin, end in _similar_lengths([sequence.length - 1 for sequence in newcomers]):
            width = newcomers[end - 1].length - 1
            if width > 0:
                rows = slice(first + begin, first + end)
                starts = mx.zeros((end - begin,), mx.int32)
                tokens = self._state.tokens[rows, :width]
                self.runner.feed(
                    Rows(tokens, starts, width, first + begin, uniform=True),
                    self.batching.prefill_step_size,
                    wait=True,
                )
        return sum(sequence.length for sequence in newcomers)

    def _build(self, *, joined: bool) -> _Flight:
        """The graph of the next step; nothing is computed yet."""
        state = self._state
        clean = self.drafter.ready and not joined
        lengths = self.policy.choose(state.sequences)
        count = max(lengths)
        gained = self._flight.width if self._flight else 0
        shortest = min(s.length for s in state.sequences) + (1 if gained else 0)
        longest = max(s.length for s in state.sequences) + gained
        self.runner.pool.reserve(longest + count + 1)
        state.reserve(longest + count + 1)
        positions = state.lengths[:, None] + mx.arange(count + 1, dtype=mx.int32)
        noise = state.sampling.noise(positions, self.runner.vocabulary)
        draft = self.drafter.propose(
            DraftContext(state.tokens, state.lengths, shortest, longest, state.sampling, noise),
            count,
        )
        logits = self.runner.forward(
            Rows(
                mx.concatenate([state.pending(), draft], axis=1),
                state.lengths - 1,
                longest + count,
                uniform=shortest == longest,
            )
        )
        samples = state.sampling.choose(logits, noise)
        caps = None if min(lengths) == count else mx.array(lengths, mx.int32)
        accepted = count_accepted(draft, samples, caps)
        state.append(samples, accepted)
        packed = mx.concatenate([accepted[:, None], samples], axis=1)
        return _Flight(lengths, packed, clean)

    def _launch(self, flight: _Flight) -> None:
        """Start computing a step without waiting for it."""
        state = self._state
        # Taken first: MLX's CPU build computes most of a graph before async_eval returns.
        flight.launched = time.perf_counter()
        mx.async_eval(  # type: ignore[no-untyped-call]
            flight.packed, state.lengths, state.tokens, self.runner.pool.state
        )
        self._flight = flight

    def _collect(self, flight: _Flight) -> list[StepOutput]:
        """Wait for a step, and hand each row the tokens it gained."""
        # The one place where the host waits for the device.
        results = cast("list[list[int]]", flight.packed.tolist())
        seconds = time.perf_counter() - flight.launched
        rows = self._state.sequences
        accepted = [result[0] for result in results]
        outputs = []
        for sequence, (count, *samples), drafted in zip(rows, results, flight.lengths, strict=True):
            if sequence in self._leaving:
                continue
            tokens = sequence.extend(samples[: count + 1])
            kept = min(count, len(tokens))
            sequence.drafted += drafted
            sequence.accepted += kept
            sequence.steps += 1
            outputs.append(StepOutput(sequence, tokens, kept))
            if sequence.finish_reason:
                self._leaving.add(sequence)
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


def _make_drafter(
    draft_model: Any, speculation: SpeculationConfig, batching: BatchingConfig
) -> Drafter:
    if draft_model is None or not speculation.enabled or speculation.num_draft_tokens == 0:
        return NoDraft()
    runner = ModelRunner(draft_model, batching.batch_size)
    return ModelDrafter(runner, batching.prefill_step_size)


def _make_policy(
    drafter: Drafter, speculation: SpeculationConfig, memory: PairMemory
) -> DraftLengthPolicy:
    most = speculation.num_draft_tokens
    if drafter.max_draft_tokens is not None:
        most = min(most, drafter.max_draft_tokens)
    if most == 0 or not speculation.adaptive:
        return FixedDraftLength(most)
    return AdaptiveDraftLength(replace(speculation, num_draft_tokens=most), memory)


def _similar_lengths(lengths: Seq[int]) -> list[tuple[int, int]]:
    """Split ascending lengths into runs ``(begin, end)`` that waste little when padded alike."""
    runs: list[tuple[int, int]] = []
    begin = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] > 32 + lengths[begin] * 3 // 2:
            runs.append((begin, end))
            begin = end
    return runs
