"""Memory of a process that runs engines: what models leave, what each engine has promised to rows,
and what the device keeps resident.

Several engines may be open (a generator, a pipeline's stages, a call in a notebook). Each may use
all that the limit leaves, but not the same bytes at the same time: an engine that runs rows says
what they may come to hold, and the others leave that alone. A single request of an engine always
runs, where it fits by itself: nobody waits for what another engine never gives back.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, Protocol
from zlib import crc32

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.cache.budget import KVBudget
from mlx_spec.cache.layout import plan
from mlx_spec.cache.several import leaves
from mlx_spec.config import BatchingConfig
from mlx_spec.errors import CapacityError
from mlx_spec.model.ranks import Ranks
from mlx_spec.platform import recommended_memory

DEFAULT_MEMORY_SHARE = 0.9
# Most of the memory beside the models that repeated beginnings may take from running rows.
PREFIX_SHARE = 0.25
# Bytes of a step for each float32 logit: the logits, noise and filters (measured: docs/LOG.md).
STEP_COPIES = 10


class Holder(Protocol):
    """An engine, as the others see it."""

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        ...


class Ledger:
    """What the engines of a process have promised to their rows; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._promised: weakref.WeakKeyDictionary[Holder, tuple[int, int]] = (
            weakref.WeakKeyDictionary()
        )

    def note(self, owner: Holder, promised: int, held: int) -> None:
        """An engine's rows may come to hold so many bytes; its caches hold some by now."""
        with self._lock:
            self._promised[owner] = (promised, held)

    def promised(self, but: Holder) -> int:
        """Bytes promised by all engines but one."""
        return sum(promised for promised, _ in self._others(but))

    def held(self) -> int:
        """Bytes of all engines' caches."""
        return sum(held for _, held in self._others(None))

    def alone(self, owner: Holder) -> bool:
        """Whether no other engine has work."""
        with self._lock:
            others = list(self._promised)
        return not any(other.busy for other in others if other is not owner)

    def _others(self, but: Holder | None) -> list[tuple[int, int]]:
        with self._lock:
            return [noted for owner, noted in self._promised.items() if owner is not but]


LEDGER = Ledger()


@dataclass(frozen=True)
class TokenBudget:
    """Bytes of K/V, and the number of tokens together if that is limited.

    Attributes:
        kv: bytes of all rows.
        most_tokens: of all rows together; None for no such limit.
        owner: whose rows they are; None for a budget that nobody shares.
    """

    kv: KVBudget
    most_tokens: int | None
    owner: weakref.ref[Holder] | None = None

    def fits(self, tokens: Seq[int], guesses: Seq[int] = ()) -> bool:
        """Whether rows that may come to hold ``tokens`` each fit together."""
        if self.most_tokens is not None and sum(tokens) > self.most_tokens:
            return False
        left = self.kv.left(tokens, guesses)
        return left >= 0 and (len(tokens) <= 1 or left >= self._elsewhere())

    def _elsewhere(self) -> int:
        owner = self.owner() if self.owner else None
        return LEDGER.promised(owner) if owner is not None else 0

    def explain(self, tokens: Seq[int], guesses: Seq[int] = ()) -> str:
        """The numbers behind a refusal."""
        if self.most_tokens is not None and sum(tokens) > self.most_tokens:
            return f"{sum(tokens)} tokens, {self.most_tokens} allowed (max_batch_tokens)"
        return self.kv.explain(tokens, guesses)


def model_bytes(*models: Any) -> int:
    """Bytes of the models' weights, computed or not; what they share counts once."""
    arrays = {
        id(array): array.nbytes
        for model in models
        if model is not None
        for _, array in tree_flatten(model.parameters())
    }
    return sum(arrays.values())


def memory_room(memory_limit: int | float | None, *models: Any) -> int:
    """Bytes that a memory limit leaves beside the models, for K/V and prefix caches.

    What else is in memory (other models, a user's arrays) is left out too; the caches of other
    engines are not, since those come and go (``Ledger``).

    Args:
        memory_limit: bytes (an int), a share of what the device recommends (a float), or None.
        models: those that will run; None ones are ignored.

    Raises:
        CapacityError: the models alone take all of it.
    """
    if memory_limit is None or isinstance(memory_limit, float):
        limit = int(recommended_memory() * (memory_limit or DEFAULT_MEMORY_SHARE))
    else:
        limit = memory_limit
    # Weights that were loaded lazily are not there yet, but will be.
    taken = max(model_bytes(*models), mx.get_active_memory() - LEDGER.held())
    if limit <= taken:
        raise CapacityError(
            f"[Engine] memory_limit is {limit} bytes and the models hold {taken}, "
            "so none are left for K/V"
        )
    return limit - taken


def agreed_room(ranks: Ranks, memory_limit: int | float | None, *models: Any) -> int:
    """The least room that any of the ranks has.

    Raises:
        CapacityError: one has none.
    """
    try:
        room, refused = memory_room(memory_limit, *models), None
    except CapacityError as error:
        room, refused = 0, error
    rooms = ranks.gather("memory", room)
    if refused is not None:
        raise refused
    if not all(rooms):
        raise CapacityError(
            f"[Engine] the models take all of rank {rooms.index(0)}'s memory, "
            "so none is left for K/V"
        )
    return min(rooms)


def with_prefix_share(batching: BatchingConfig, room: int, models: int) -> BatchingConfig:
    """The same, but for prefix caches that would crowd out the rows."""
    most = int(PREFIX_SHARE * room) // models
    return replace(batching, prefix_cache_bytes=min(batching.prefix_cache_bytes, most))


def alike_layers(ranks: Ranks, model: Any, batching: BatchingConfig) -> bool:
    """Whether all ranks hold as many layers of each kind."""
    caches = plan(model, batching.cache)
    kinds = sorted(type(leaf).__name__ for own in caches for leaf in leaves(own))
    return len(set(ranks.gather("layers", crc32(repr(kinds).encode())))) == 1


class _Wired:
    """How many drivers run models; the first raises Metal's limit, the last puts it back."""

    lock = threading.Lock()
    users = 0
    before = 0


@contextlib.contextmanager
def wired_memory(finish: Callable[[], object]) -> Iterator[None]:
    """Keep the models' memory resident on a Mac while any engine is driven; else do nothing.

    Args:
        finish: waits for the driver's work, before the limit may change.
    """
    if not mx.metal.is_available():
        yield
        return
    with _Wired.lock:
        _Wired.users += 1
        if _Wired.users == 1:
            _Wired.before = mx.set_wired_limit(recommended_memory())
    try:
        yield
    finally:
        try:
            finish()
        finally:
            with _Wired.lock:
                _Wired.users -= 1
                if _Wired.users == 0:
                    mx.set_wired_limit(_Wired.before)
