"""``RowMemory``: the K/V memory of one engine's rows, within its budget.

What requests may come to hold is known before they run (``reservations``), so slots are made as
large as that and not as the rows grow; other engines hear of it (``memory.LEDGER``). K/V of
preempted rows are kept aside while they fit beside the rows, and given up where they do not.
"""

from __future__ import annotations

import weakref
from dataclasses import replace

from mlx_spec.batching.memory import LEDGER, STEP_COPIES, Holder, TokenBudget
from mlx_spec.batching.scheduler import Scheduler
from mlx_spec.cache.budget import KVBudget
from mlx_spec.cache.slot_sizes import SlotSize
from mlx_spec.cache.usage import KVUsage
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.model.ranks import Ranks
from mlx_spec.sequence import Sequence

# Slots go back where they are so many times what the running requests may come to hold.
HELD_AT_MOST = 4


class RowMemory:
    """Sizes the slots of an engine's running requests.

    Args:
        owner: the engine, whose promise to its rows it is.
        decoder: whose slots they are.
        scheduler: says who runs and who waits.
        budget: bytes that all of it may take.

    Attributes:
        budget: the same.
    """

    def __init__(
        self,
        owner: Holder,
        decoder: SpeculativeDecoder,
        scheduler: Scheduler[Sequence],
        budget: TokenBudget,
    ) -> None:
        # No way back: who drops an engine gets its memory at once.
        self._owner = weakref.ref(owner)
        self._decoder, self._scheduler, self.budget = decoder, scheduler, budget

    @property
    def usage(self) -> KVUsage:
        """What is held now, and by what."""
        return self._decoder.kv_usage(self.budget.kv.limit)

    def members_changed(self) -> None:
        """Who runs has changed, or what it reserves: room for them, and no more than that."""
        self._drop_saved()
        self._size_slots()

    def requests_ended(self) -> None:
        """Where most of what is held was for requests that have ended, hold less."""
        held = sum(runner.pool.nbytes for runner in self._decoder.runners)
        if held > HELD_AT_MOST * self.budget.kv.slot_bytes(*self._needs()):
            self._size_slots()

    def idle(self) -> None:
        """Nothing runs and nothing waits: all slots go back."""
        self._decoder.trim()
        self._promise()

    def _needs(self) -> tuple[list[int], list[int]]:
        """Most tokens that each row may come to hold, and guesses that a step verifies of it."""
        running = self._scheduler.running
        return [request.reserved for request in running], [request.guesses for request in running]

    def _drop_saved(self) -> None:
        """K/V kept aside that do not fit beside the rows are given up, to be computed again.

        First of those whose turn is last. What returns now stays until it is back in its slot.
        """
        free = self.budget.kv.left(*self._needs())
        if self._decoder.saved_bytes > free:
            for request in reversed(self._scheduler.waiting):
                dropped = self._decoder.drop_saved(request)
                if dropped and self._decoder.saved_bytes <= free:
                    break

    def _size_slots(self) -> None:
        """Make room for what the running requests may come to need, within the limit."""
        tokens, guesses = self._needs()
        if tokens:
            kv = self.budget.kv
            aside = replace(kv, limit=kv.limit - self._decoder.saved_bytes)
            positions = kv.positions(tokens, guesses)
            rows = self._scheduler.limit.rows
            most = min(rows, aside.most_rows(positions, max(guesses)))
            self._decoder.size_slots(SlotSize(len(tokens), max(len(tokens), most), positions))
        self._promise()

    def _promise(self) -> None:
        """Tell other engines what rows may come to hold, so that they leave it alone."""
        owner = self._owner()
        if owner is None:  # it is being dropped
            return
        usage = self.usage
        rows = self.budget.kv.nbytes(*self._needs())
        kept = usage.bytes_saved + usage.bytes_prefix
        LEDGER.note(owner, max(rows, usage.bytes_held) + kept, usage.total)


def token_budget(
    owner: Holder, decoder: SpeculativeDecoder, batching: BatchingConfig, ranks: Ranks, room: int
) -> TokenBudget:
    """What an engine's rows may take of so many bytes: the same on all ranks, whatever else is on
    one."""
    room -= batching.prefix_cache_bytes * len(decoder.runners)
    # Of each token that a step verifies, beside its K/V: what choosing takes.
    token_bytes = decoder.runner.vocabulary * 4 * STEP_COPIES
    kv = KVBudget(ranks.share(decoder.cost), room, batching.block_size, token_bytes)
    shared = None if ranks.several else weakref.ref(owner)
    return TokenBudget(kv, batching.max_batch_tokens, shared)
