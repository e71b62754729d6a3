"""Ranks of one model in one process, a thread each, over links that are queues.

Each thread has a whole copy of the model: what is tested is who decides what, and when.
"""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from mlx_spec.batching.following import Follower
from mlx_spec.errors import RankError
from mlx_spec.model.ranks import End, SeveralRanks, note_ranks
from tests.models import make_model

PATIENCE = 120.0  # seconds; a safety net


class QueueLink:
    """One end of a link between two threads."""

    size = 2

    def __init__(self, rank: int, to: queue.Queue[bytes], of: queue.Queue[bytes]) -> None:
        self.rank, self.lost, self._to, self._of = rank, "", to, of
        self.shared = 0

    def share(self, value: Any) -> Any:
        self.shared += 1
        if self.rank == 0:
            self._to.put(pickle.dumps(value))
            return value
        return pickle.loads(self._of.get(timeout=PATIENCE))

    def gather(self, what: str, value: Any) -> list[Any]:
        self._to.put(pickle.dumps((what, value)))
        said, other = pickle.loads(self._of.get(timeout=PATIENCE))
        if said != what:
            raise RankError(f"[RankLink.gather] {what} here, {said} there: {other}")
        return [value, other] if self.rank == 0 else [other, value]

    def chosen(self, tokens: mx.array) -> mx.array:
        return tokens


class QuietWatch:
    """A watch over threads, which do not die."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.other: QuietWatch = self
        self._ended = self._dismissed = False
        self._bell = threading.Semaphore(0)

    def ring(self) -> None:
        self.other._bell.release()

    def wait(self) -> bool:
        assert self._bell.acquire(timeout=PATIENCE)
        return not self._dismissed

    def dismiss(self) -> None:
        if self.ends():
            self.other._dismissed = True
            self.ring()

    def leave(self, words: str) -> None:
        pass

    def ends(self) -> bool:
        news, self._ended = not self._ended, True
        return news


class Linked:
    """Two ranks.

    Attributes:
        model: rank 0's.
        ranks: of it.
        other: of rank 1.
        error: what rank 1's thread has raised.
    """

    def __init__(self, draft: Any = None, kind: str = "tensor") -> None:
        there, back = queue.Queue[bytes](), queue.Queue[bytes]()
        self.model, self._copy = make_model(), make_model()
        links: list[Any] = [QueueLink(0, there, back), QueueLink(1, back, there)]
        watches: list[Any] = [QuietWatch(), QuietWatch()]
        watches[0].other = watches[1]
        self.ranks = SeveralRanks(links[0], kind, watches[0])
        self.other = SeveralRanks(links[1], kind, watches[1])
        note_ranks(self.model, self.ranks)
        note_ranks(self._copy, self.other)
        self.error: BaseException | None = None
        self.follower = Follower(self.other, self._copy, None, draft)
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        message: Any = None
        try:
            while not isinstance(message, End):
                message = self.follower.obey(self.other.listen() if message is None else message)
        except BaseException as error:
            self.error = error


@contextmanager
def linked(draft: Any = None, kind: str = "tensor") -> Iterator[Linked]:
    """Two ranks, of which the second ends with the block."""
    both = Linked(draft, kind)
    try:
        yield both
    finally:
        both.ranks.end()
        both.thread.join(PATIENCE)
        assert not both.thread.is_alive()
