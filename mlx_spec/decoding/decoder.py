"""``SpeculativeDecoder``: one ragged ``step()`` for everything.

Plain decoding is verification of zero drafts, and a batch of one is a batch. A step is one graph:
draft, verify in one target pass, accept each row's own number of tokens, roll back by assigning
lengths (``step``). Which of the two drivers takes it (``drivers``) depends on whether somebody
needs the host in between.

The decoder knows tokens only. Texts, stop texts and queues belong to ``batching``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.given import GivenRow
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.slot_sizes import SlotSize
from mlx_spec.cache.usage import KVUsage, measure
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.control.demand import RowDemand
from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.checks import check_tokens
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.decoding.drafters.registry import DraftParts
from mlx_spec.decoding.drivers import ahead, in_turn
from mlx_spec.decoding.flight import StepOutput
from mlx_spec.decoding.logprobs import LogprobsWatcher
from mlx_spec.decoding.members import Members
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.decoding.rules import LogitsRule
from mlx_spec.decoding.setup import make_acceptance, make_grammar_rule, used_model
from mlx_spec.decoding.speculation import Speculation
from mlx_spec.decoding.step import StepParts
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.errors import InvalidRequest
from mlx_spec.model.device_stream import DeviceStream
from mlx_spec.model.kernel_binding import bound_sample
from mlx_spec.model.runner import ModelRunner
from mlx_spec.row_limit import RowLimit
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
        model: the target, any model loaded by mlx-lm that ``model.support`` does not refuse.
        draft_model: a smaller model with the same token map, or a head; None; or the pair of it
            and its tokenizer.
        tokenizer: the target's, for drafters that ask for it.
        drafter: another source of drafts, instead of ``draft_model``.
        speculation: whether and how far to draft.
        batching: rows and prefill size.
        policy: chooses draft lengths, instead of what ``speculation`` says.
        rules: what is done to logits before tokens are chosen.
        debug: check every row's K/V against a lone cache after every step (slow).
        clock: seconds.
        limit: rows that run together, where somebody else says it; else ``batching.batch_size``.
        demand: requests that want a row, where somebody else knows of them.

    Raises:
        UnsupportedModel: a model whose cache cannot roll back row by row.
    """

    def __init__(
        self,
        model: Any,
        *,
        draft_model: Any = None,
        tokenizer: Any = None,
        drafter: Drafter | None = None,
        speculation: SpeculationConfig | None = None,
        batching: BatchingConfig | None = None,
        policy: DraftLengthPolicy | None = None,
        rules: Seq[LogitsRule] = (),
        debug: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        limit: RowLimit | None = None,
        demand: RowDemand | None = None,
    ) -> None:
        speculation = speculation or SpeculationConfig()
        self.batching = batching or BatchingConfig()
        self.device = DeviceStream()
        self.runner = ModelRunner(model, self.batching.batch_size, self.batching.cache)
        draft, draft_tokenizer = (
            draft_model if isinstance(draft_model, tuple) else (draft_model, None)
        )
        draft = used_model(draft, speculation)
        self.speculation = Speculation(
            DraftParts(self.runner, speculation, self.batching, draft, tokenizer, draft_tokenizer),
            drafter,
            policy,
            demand,
        )
        self.drafter, self.policy = self.speculation.drafter, self.speculation.policy
        self.meter = StepMeter()
        self.clock = clock
        self.limit = limit or RowLimit(self.batching.batch_size)
        for runner in self.runners:
            runner.pool.limit = self.limit
        with self.device.work():
            self._state = BatchState(operation=bound_sample(model))
        self._members = Members(
            self.runner, self.drafter, self._state, self.meter, self.batching, clock
        )
        parts = self._parts(rules, speculation)
        self._stepper = Stepper(parts, self._members, self.policy, self.meter, clock)
        self._stepper.debug, self._stepper.hear = debug, self.speculation.measuring.hear

    def _parts(self, rules: Seq[LogitsRule], speculation: SpeculationConfig) -> StepParts:
        """Who takes part in its steps."""
        return StepParts(
            self.runner,
            self.drafter,
            self._state,
            (*rules, make_grammar_rule(self.runner.ranks)),
            (LogprobsWatcher(), *self.drafter.watchers),
            make_acceptance(speculation),
            self.speculation.measuring.prices,
        )

    @property
    def draft_length(self) -> int:
        """Of the last step, in tokens: the longest of its rows'."""
        return self._stepper.draft_length

    @property
    def ready(self) -> float:
        """When the last step's work was done, in seconds of the clock."""
        return self._stepper.ready

    @property
    def running(self) -> list[Sequence]:
        """Sequences that decode, in row order."""
        return list(self._state.sequences)

    @property
    def runners(self) -> tuple[ModelRunner, ...]:
        """The models that run here: the target, and those of the drafter."""
        return (self.runner, *self.drafter.runners)

    @property
    def slow_passes(self) -> str:
        """Which of the models is read in another form than the whole batch at once, in words."""
        roles = ("target", *["draft"] * len(self.drafter.runners))
        forms = [runner.support.form.words for runner in self.runners]
        return ", ".join(
            f"{role} {words}" for role, words in zip(roles, forms, strict=True) if words
        )

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
            self._stepper.land()
            self._members.change()
            for runner in self.runners:
                runner.pool.trim()

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """Ask between the layers of a prompt's pass whether all rows are about to be cancelled."""
        self._members.feeder.stopping = stopping

    def know_costs(self) -> None:
        """Time passes where nobody has on this machine, before anybody waits for a step: once for
        each model, for a few seconds at most."""
        with self.device.work():
            stopping = self._members.feeder.stopping
            self.speculation.measuring.before_any(self.limit.rows, stopping)

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """Tokens read, and all tokens, of the prompts that are being read or were last."""
        return self._members.feeder.progress

    @property
    def free_rows(self) -> int:
        """Sequences that may still be added."""
        return max(0, self.limit.rows - self._members.staying - len(self._members.waiting))

    @property
    def busy(self) -> bool:
        """Whether a further :meth:`step` has something to do."""
        return self._members.staying > 0 or bool(self._members.waiting)

    def add(self, sequences: Seq[Sequence]) -> None:
        """Let sequences join at the next step.

        Raises:
            InvalidRequest: more sequences than free rows, or a token outside the vocabulary.
            IllegalTransition: one that has ended.
        """
        if len(sequences) > self.free_rows:
            raise InvalidRequest(
                f"[SpeculativeDecoder.add] {len(sequences)} sequences, {self.free_rows} free rows "
                f"of {self.limit.rows} (batch_size)"
            )
        for sequence in sequences:
            self.check(sequence)
        for sequence in sequences:
            if not sequence.holds_row:  # else a scheduler has admitted it
                sequence.admit(self.clock())
        self._members.waiting += sequences

    def check(self, sequence: Sequence) -> None:
        """Refuse a sequence that the target cannot read.

        Raises:
            InvalidRequest: a token id outside the vocabulary, in the prompt or a bias.
        """
        check_tokens(sequence, self.runner.vocabulary)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence leave now; what a step in flight computes for it is dropped."""
        self._stepper.leave(sequence)
        self._members.forget(sequence)

    def suspend(self, sequence: Sequence, *, save: bool) -> None:
        """Let a sequence leave that will be added again later, and go on as if it had stayed.

        Args:
            sequence: one that was added.
            save: keep its K/V (bytes until it returns: ``saved_bytes``); else they are computed
                again from its tokens.
        """
        if sequence.holds_row:  # else a scheduler has preempted it
            sequence.preempt(self.clock())
        self._stepper.leave(sequence, save=save)

    @property
    def saved_bytes(self) -> int:
        """Bytes of K/V kept for suspended sequences, or about to be."""
        return self._members.saved_bytes

    def saved(self, sequence: Sequence) -> RowState:
        """What is kept of a suspended sequence, behind the step after that."""
        return self._members.saved(sequence)

    def remember(self, tokens: Seq[int], state: RowState) -> int:
        """Keep what was saved elsewhere of a text, for all that begin with it.

        Args:
            tokens: the text.
            state: what the target's own layers keep of it.

        Returns:
            Tokens that are kept: whole blocks, or all where caches cannot be cut; 0 where the
            prefix cache has no room for it.
        """
        with self.device.work():
            source = GivenRow(state, len(tokens), self.runner.pool)
            return self._members.feeder.remember(Sequence([*tokens, 0]), source)

    def drop_saved(self, sequence: Sequence) -> bool:
        """Give up what is kept of a suspended sequence; it goes on from its tokens all the same.

        Returns:
            Whether there was something to give up.
        """
        return self._members.forget(sequence)

    def meet(self) -> None:
        """After a step that read nothing: have what ranks tell each other once a step."""
        with self.device.work():
            self._stepper.meet(None)

    def step(self) -> list[StepOutput]:
        """Feed a chunk of waiting prompts, then advance every decoding row by one verify pass.

        Any thread may call it, one at a time.

        Returns:
            One output per row that emitted tokens, in row order; none while only prompts are fed.
        """
        with self.device.work():
            rows = self._members.staying + len(self._members.waiting)
            stopping = self._members.feeder.stopping
            self.speculation.measuring.before_step(rows, self.limit.rows, stopping)
            outputs = self._drive()
            if not outputs and self._stepper.flight is not None:
                # Nothing was in flight before: that call launched a step, and this one reads it.
                self._stepper.feed_no_more()
                outputs = self._drive()
            return outputs

    def _drive(self) -> list[StepOutput]:
        """In turn, once nothing is in flight, while somebody needs the host; else ahead."""
        stepper = self._stepper
        waits = stepper.flight is None and stepper.waits
        return in_turn(stepper) if waits else ahead(stepper)
