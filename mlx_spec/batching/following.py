"""``follow``: what a rank does that does not decide: it makes the engines that rank 0 makes, and
steps them when rank 0 does, until rank 0's program ends."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from mlx_spec.batching.commands import Do, Go, Make
from mlx_spec.batching.leading import ShardedEngine, describe_draft, make_sharded
from mlx_spec.errors import InvalidRequest, MlxSpecError, RankError
from mlx_spec.model.ranks import Abandoned, End, SeveralRanks, ranks_of


def follow(model: Any, tokenizer: Any = None, *, draft_model: Any = None) -> None:
    """Let rank 0 go on, and have all other ranks follow it: behind ``load``, once.

    On rank 0, and where one process holds the model, it returns at once. Elsewhere it returns
    never: it does what rank 0's generators do, and ends the process when rank 0's program ends::

        model, tokenizer = load(name, shard="tensor")
        draft = load(draft_name)
        follow(model, tokenizer, draft_model=draft)
        print(generate(model, tokenizer, "Hello", draft_model=draft).text)  # rank 0 alone

    Args:
        model, tokenizer: what ``load(..., shard=...)`` returned.
        draft_model: what rank 0 will draft with, if it does.

    Raises:
        SystemExit: rank 0's program has ended.
        RankError: a rank is gone, or disagrees; the others then end, too.
    """
    ranks = ranks_of(model)
    if not isinstance(ranks, SeveralRanks) or ranks.rank == 0:
        return
    if threading.current_thread() is threading.main_thread():
        _leave_signals_to_rank_0(ranks)
    follower = Follower(ranks, model, tokenizer, draft_model)
    try:
        message: Any = None
        while not isinstance(message, End):
            message = follower.obey(ranks.listen() if message is None else message)
    except (RankError, RuntimeError) as error:  # of which MLX's own name nobody
        words = ranks.why_lost()
        ranks.leave(" ".join(str(error).split()))
        if words:
            raise RankError(f"[follow] {words}") from error
        raise
    except BaseException as error:
        ranks.leave(" ".join(str(error).split()) or repr(error))
        raise
    ranks.leave("")
    sys.exit(0)


def _leave_signals_to_rank_0(ranks: SeveralRanks) -> None:
    """It says when it is over: Ctrl-C in a terminal reaches it anyway, others are passed on once.

    A service that is told to end finishes what runs, for which it needs all ranks.
    """

    def told(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        ranks.pass_on()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, told)


class Follower:
    """The engines of a rank that follows.

    Args:
        ranks: those that hold the model.
        model, tokenizer, draft_model: this rank's.
    """

    def __init__(self, ranks: SeveralRanks, model: Any, tokenizer: Any, draft_model: Any) -> None:
        self._ranks, self._model, self._tokenizer = ranks, model, tokenizer
        self._draft = draft_model
        self._engines: dict[int, ShardedEngine] = {}

    def obey(self, message: Any) -> Any:
        """Do what rank 0 says; what it says next, where it has said that meanwhile."""
        try:
            if isinstance(message, Make):
                self._make(message)
            elif isinstance(message, Do):
                self._engines[message.engine].do(message.command)
            elif isinstance(message, Go):
                self._run(message)
            return message if isinstance(message, End) else None
        except Abandoned as left:
            self._ranks.rest()
            self._engines.pop(self._ranks.engine, None)
            return left.message

    def _make(self, message: Make) -> None:
        for number in message.gone:
            self._engines.pop(number, None)
        try:
            engine = make_sharded(self._ranks, lambda: self._made(message))
        except MlxSpecError:
            return  # rank 0 has heard of it, and says it to who asked
        self._engines[message.engine] = engine

    def _made(self, message: Make) -> ShardedEngine:
        own = describe_draft(self._draft) if message.draft else ""
        if own != message.draft:
            raise InvalidRequest(
                f"rank 0 drafts with {message.draft}, and this rank was given "
                f"{own or 'no draft model'}; give follow() the same"
            )
        if message.reads and self._tokenizer is None:
            raise InvalidRequest(
                "rank 0 has a tokenizer, and this rank was given none; give follow() the same"
            )
        return ShardedEngine(
            self._ranks,
            message.engine,
            self._model,
            self._tokenizer if message.reads else None,
            draft_model=self._draft if message.draft else None,
            speculation=message.speculation,
            batching=message.batching,
        )

    def _run(self, go: Go) -> None:
        engine = self._engines[go.engine]
        engine.start(go)
        while engine.scheduler.active:
            engine.advance(hurry=go.hurry)
