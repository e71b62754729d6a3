"""What of the K/V memory is held, and what of that is used: for statistics and tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.pool import KVCachePool


@dataclass(frozen=True)
class KVUsage:
    """The K/V memory of an engine at one moment; blocks of ``block_size`` tokens.

    Attributes:
        slots, slots_used: rows that there is memory for, and those that hold a sequence.
        positions: tokens that a slot can hold.
        tokens: tokens whose K/V the used slots hold.
        blocks, blocks_used: in all slots, and those with at least one such token.
        bytes_held: of all slots, target and draft together.
        bytes_by_kind: the same by what is held: full attention, windows, states, 8 bits.
        bytes_used: of the tokens among them.
        bytes_saved: of preempted rows kept aside.
        bytes_prefix: of repeated beginnings.
        bytes_limit: most that slots and rows kept aside may take together.
    """

    slots: int = 0
    slots_used: int = 0
    positions: int = 0
    tokens: int = 0
    blocks: int = 0
    blocks_used: int = 0
    bytes_held: int = 0
    bytes_used: int = 0
    bytes_saved: int = 0
    bytes_prefix: int = 0
    bytes_limit: int = 0
    bytes_by_kind: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def total(self) -> int:
        """Bytes of all K/V: slots, rows kept aside, repeated beginnings."""
        return self.bytes_held + self.bytes_saved + self.bytes_prefix

    @property
    def waste(self) -> float:
        """The share of the slots' bytes that holds no token: empty slots, and ends of rows."""
        return 1 - self.bytes_used / self.bytes_held if self.bytes_held else 0.0


def measure(pools: Seq[KVCachePool], cached: Seq[int], block_size: int) -> KVUsage:
    """The slots' part of the usage.

    Args:
        pools: the target's, then the drafter's; sized alike.
        cached: tokens that each row's slot holds.
        block_size: tokens a block.
    """
    pool = pools[0]
    # A drafter that has not drafted yet holds nothing, whatever it will.
    cost = sum((pool.cost for pool in pools), RowCost())
    return KVUsage(
        slots=pool.slots,
        slots_used=len(cached),
        positions=pool.positions,
        tokens=sum(cached),
        blocks=pool.slots * -(-pool.positions // block_size),
        blocks_used=sum(-(-tokens // block_size) for tokens in cached),
        bytes_held=sum(pool.nbytes for pool in pools),
        bytes_by_kind=sum((pool.nbytes_by_kind for pool in pools), Counter()),
        bytes_used=sum(cost.nbytes(tokens) for tokens in cached),
    )
