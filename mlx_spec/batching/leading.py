"""``ShardedEngine``: an engine whose model several ranks hold, each of which runs one like it.

Rank 0's takes requests; those of the others (``following``) do as it does. While rows are active
all of them step on by themselves and meet once a step, where rank 0 says what has come meanwhile
(``model.ranks``); that is done at the step's end. An engine that stands still is told to go on::

    rank 0   submit: Do | step: Go | step | submit: posted, step ... | step: nothing is active
    rank 1   ... waits  | Do       | Go: step       | step, do it ...| waits

``make_engine`` is how everybody gets an engine, of whatever kind the model needs.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

from mlx.utils import tree_flatten

from mlx_spec import interrupts
from mlx_spec.batching.commands import (
    Cancelled,
    Command,
    Do,
    Go,
    Make,
    RequestRecord,
    Resized,
    Submitted,
    requests_of,
)
from mlx_spec.batching.engine import Engine
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding.flight import StepOutput
from mlx_spec.errors import IllegalTransition, InvalidRequest, RankError
from mlx_spec.model.ranks import SeveralRanks, ranks_of
from mlx_spec.sequence import Sequence


def make_engine(model: Any, tokenizer: Any, **options: Any) -> Engine:
    """An engine for a model; ``options`` are those of :class:`Engine`.

    Raises:
        InvalidRequest: this is a rank that follows, or one of its engines runs.
        RankError: another rank cannot make one, or is gone.
    """
    ranks = ranks_of(model)
    if not isinstance(ranks, SeveralRanks):
        return Engine(model, tokenizer, **options)
    if ranks.rank:
        raise InvalidRequest(
            f"[Engine] rank {ranks.rank} of {ranks.size} follows rank 0: call follow(model, "
            "tokenizer) there, behind load"
        )
    speculation = options.get("speculation") or SpeculationConfig()
    batching = options.get("batching") or BatchingConfig()
    draft = describe_draft(options.get("draft_model"))
    with ranks.turn:
        number = next(ranks.numbers)
        reads = tokenizer is not None
        ranks.tell(Make(number, speculation, batching, draft, reads, ranks.take_gone()))
        engine = make_sharded(
            ranks, lambda: ShardedEngine(ranks, number, model, tokenizer, **options)
        )
    weakref.finalize(engine, ranks.dropped, number).atexit = False
    return engine


def make_sharded(ranks: SeveralRanks, make: Callable[[], ShardedEngine]) -> ShardedEngine:
    """An engine that all ranks have made, or none has.

    Raises:
        RankError: another rank could not.
        whatever ``make`` raises.
    """
    try:
        engine = make()
    except RankError:
        raise
    except Exception as error:
        # Where the others fail alike, they say so too; else they hear of it.
        ranks.gather("engine", " ".join(str(error).split())[:500] or repr(error)[:500])
        raise
    for rank, words in enumerate(ranks.gather("engine", "")):
        if words:
            raise RankError(f"[Engine] rank {rank} of {ranks.size}: {words}")
    return engine


def describe_draft(draft_model: Any) -> str:
    """What a draft model is, for ranks to compare; empty for none."""
    draft = draft_model[0] if isinstance(draft_model, tuple) else draft_model
    if draft is None:
        return ""
    size = sum(array.size for _, array in tree_flatten(draft.parameters()))
    return f"{type(draft).__module__}.{type(draft).__qualname__} of {size} parameters"


class ShardedEngine(Engine):
    """One rank's engine; only rank 0's is given requests.

    Args:
        ranks: those that hold the model.
        number: of the engine, the same on all.
        model, tokenizer, options: as for :class:`Engine`.
    """

    def __init__(
        self, ranks: SeveralRanks, number: int, model: Any, tokenizer: Any, **options: Any
    ) -> None:
        self._several, self.number = ranks, number
        self._counted = itertools.count()
        self._coming: dict[int, Sequence] = {}  # posted, and not taken in yet
        self._known: dict[int, Sequence] = {}
        self._numbers: dict[Sequence, int] = {}
        super().__init__(model, tokenizer, **options)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs, or has come."""
        return bool(super().busy or self._coming)

    def now(self) -> float:
        """Rank 0's time at the last meeting."""
        return self._several.time

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """A pass that others compute with this rank is not stopped in its middle."""

    def submit(self, *requests: Sequence) -> None:
        """Queue requests, all or none, on all ranks.

        Raises:
            InvalidRequest: as of any engine; or functions, which cannot be sent.
        """
        self.check(requests)
        records = tuple(RequestRecord.of(next(self._counted), one) for one in requests)
        for record, request in zip(records, requests, strict=True):
            self._coming[record.number] = request
            self._numbers[request] = record.number
        self._post(Submitted(records, self.clock()))

    def cancel(self, request: Sequence) -> None:
        """Stop a request, on all ranks, at the next boundary between two steps."""
        number = self._numbers.get(request)
        if number is not None:
            self._post(Cancelled(number))

    def set_batch_size(self, rows: int) -> None:
        """Change the number of rows, on all ranks."""
        self._post(Resized(rows))

    def settle(self) -> None:
        """Nobody gives requests any more: cancel what is left, and step until it is gone."""
        for request in [*self._coming.values(), *self._known.values()]:
            self.cancel(request)
        while self.scheduler.active:
            self.step(hurry=True)

    def step(self, *, hurry: bool = False) -> list[Sequence]:
        """As of any engine; the other ranks do it, too."""
        if self.scheduler.active:
            return self.advance(hurry=hurry)
        if not self.busy:
            return []
        go = Go(self.number, self.clock(), hurry)
        with self._several.turn:
            self._several.tell(go, self)
            return self.start(go)

    def start(self, go: Go) -> list[Sequence]:
        """The first step after a rest, on any rank."""
        self._several.device = self.decoder.device
        self._several.begin(go.engine, go.now)
        return self.advance(hurry=go.hurry)

    def advance(self, *, hurry: bool) -> list[Sequence]:
        """One step on this rank, and what its meeting has brought.

        Ctrl-C waits for its end: ranks that leave a step in different places are lost to each
        other.
        """
        ranks = self._several
        before = ranks.meetings
        with interrupts.held(), ranks.turn:
            changed = super().step(hurry=hurry)
            if ranks.meetings == before:
                self.decoder.meet()
            for command in ranks.take():
                self.do(command)
            ranks.running = weakref.ref(self) if self.scheduler.active else None
        return changed

    def decode(self) -> list[StepOutput]:
        """As of any engine; where a rank is gone it says which."""
        try:
            return super().decode()
        # MLX's own error names nobody; and requests may have been failed under the step, by the one
        # who watches the ranks.
        except (RuntimeError, IllegalTransition) as error:
            if words := self._several.why_lost():
                raise RankError(f"[Engine.step] {words}") from error
            raise

    def do(self, command: Command) -> None:
        """What arrived is done, on any rank, between two steps."""
        if isinstance(command, Submitted):
            numbers = [record.number for record in command.records]
            requests = [one for n in numbers if (one := self._coming.pop(n, None)) is not None]
            requests = requests or requests_of(command.records, self._tokenizer)
            self._known.update(zip(numbers, requests, strict=True))
            self._numbers.update(zip(requests, numbers, strict=True))
            self.queue(requests, command.now)
        elif isinstance(command, Cancelled):
            request = self._known.get(command.number)
            if request is not None:
                super().cancel(request)
        else:
            super().set_batch_size(command.rows)

    def _post(self, command: Command) -> None:
        """Have something done on all ranks: now, or where they meet next."""
        if self.scheduler.active:
            self._several.posted.append(command)
        else:
            with self._several.turn:
                self._several.tell(Do(self.number, command), self)
                self.do(command)

    def _forget(self, request: Sequence) -> None:
        super()._forget(request)
        number = self._numbers.pop(request, None)
        if number is not None:
            self._known.pop(number, None)
