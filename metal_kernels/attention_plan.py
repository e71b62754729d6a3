"""How attention's work is cut up: rows a simdgroup, keys a tile, splits of the keys; and what
memory that takes. Pure arithmetic: no mlx, nothing is launched.

One threadgroup handles all queries of one row and KV head over one stretch of keys. Each tile of
keys and values is read from device memory once, into threadgroup memory, and shared by all
simdgroups: ``row_blocks`` of them hold different queries, ``key_groups`` of them take different
keys of the tile and are merged at the end. Where rows and KV heads are too few to fill the
machine, the keys are split over ``splits`` threadgroups, and a second pass merges those.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

SIMD = 32
MAX_SPLITS = SIMD  # the second pass holds one split a lane
MAX_SIMDGROUPS = 8  # 256 threads: any kernel may have them, however many registers it takes
THREADGROUP_BYTES = 32 * 1024
K_PADDING = 4  # elements after each key of a tile, so that neighbours start in different banks
# Of accumulators, registers a lane: beyond that they spill.
_ACCUMULATORS = 32
_MAX_ROWS = 8
_FLOAT = 4


@dataclass(frozen=True)
class AttentionConfig:
    """What to spend on speed.

    Attributes:
        simdgroups: of a threadgroup, at most; more hide more latency and need larger tiles.
        tile_bytes: of keys and values in threadgroup memory, at most.
        query_bytes: of queries in threadgroup memory, at most; queries beyond that are given to
            another threadgroup, which reads the keys again.
        threadgroups: wanted in flight; fewer rows than that split their keys.
        split_keys: fewest keys that a split is worth starting for.
    """

    simdgroups: int = MAX_SIMDGROUPS
    tile_bytes: int = 18 * 1024
    query_bytes: int = 16 * 1024
    threadgroups: int = 64
    split_keys: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.simdgroups <= MAX_SIMDGROUPS:
            raise ValueError(
                f"[AttentionConfig] simdgroups={self.simdgroups}, expected 1..{MAX_SIMDGROUPS}"
            )
        for name in ("tile_bytes", "query_bytes", "threadgroups", "split_keys"):
            if getattr(self, name) < 1:
                raise ValueError(f"[AttentionConfig] {name}={getattr(self, name)}, expected >= 1")


@dataclass(frozen=True)
class AttentionPlan:
    """One way to cut the work up; every number is a constant of the compiled kernel.

    Attributes:
        rows: queries that one simdgroup holds.
        row_blocks, key_groups: simdgroups over queries, and over the keys of a tile.
        keys: keys of a tile that one simdgroup takes; a power of two up to 32.
        parts: threadgroups over the queries of one row and KV head.
        splits: threadgroups over the keys.
    """

    rows: int
    row_blocks: int
    key_groups: int
    keys: int
    parts: int
    splits: int

    @property
    def threads(self) -> int:
        """Of a threadgroup."""
        return SIMD * self.row_blocks * self.key_groups

    @property
    def tile(self) -> int:
        """Keys of a tile."""
        return self.key_groups * self.keys

    def threadgroup_bytes(self, head_dim: int, itemsize: int) -> int:
        """Threadgroup memory that the kernel declares."""
        held = self.rows * self.row_blocks
        queries = held * head_dim * itemsize
        merged = held * (head_dim + 2 * self.key_groups) * _FLOAT if self.key_groups > 1 else 0
        return queries + self.tile * _key_bytes(head_dim, itemsize) + merged


@lru_cache(maxsize=1024)
def make_plan(
    config: AttentionConfig,
    *,
    groups: int,
    queries: int,
    capacity: int,
    head_dim: int,
    itemsize: int,
) -> AttentionPlan:
    """Cut attention up.

    Args:
        config: what to spend.
        groups: rows times KV heads.
        queries: of one row and KV head: new tokens times query heads a KV head.
        capacity: keys of a slot.
        head_dim, itemsize: of the arrays; bytes.
    """
    most = max(1, min(_MAX_ROWS, _ACCUMULATORS * SIMD // _round_up(head_dim, SIMD)))
    held = min(most * config.simdgroups, max(1, config.query_bytes // (head_dim * itemsize)))
    parts = -(-queries // held)
    per_part = -(-queries // parts)
    row_blocks = -(-per_part // most)
    rows = -(-per_part // row_blocks)
    parts = -(-queries // (rows * row_blocks))
    # Merging many rows would take more memory than the tile: only few rows share keys out.
    key_groups = max(1, config.simdgroups // row_blocks) if row_blocks <= 2 else 1
    keys = SIMD
    plan = AttentionPlan(rows, row_blocks, key_groups, keys, parts, 1)
    while keys > 1 and (
        plan.tile * _key_bytes(head_dim, itemsize) > config.tile_bytes
        or plan.threadgroup_bytes(head_dim, itemsize) > THREADGROUP_BYTES
    ):
        keys //= 2
        plan = AttentionPlan(rows, row_blocks, key_groups, keys, parts, 1)
    splits = _count_splits(config, groups * parts, capacity)
    return AttentionPlan(rows, row_blocks, key_groups, keys, parts, splits)


def _count_splits(config: AttentionConfig, groups: int, capacity: int) -> int:
    wanted = -(-config.threadgroups // max(1, groups))
    return max(1, min(wanted, capacity // config.split_keys, MAX_SPLITS))


def _key_bytes(head_dim: int, itemsize: int) -> int:
    """Of one key and its value in a tile."""
    return (2 * head_dim + K_PADDING) * itemsize


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of memory that attention takes beside its inputs.

    Attributes:
        flash: the output, and the partial results where keys are split.
        standard: the output, and scores and probabilities of all queries and keys, as attention
            without a fused kernel materialises them.
        threadgroup: on-chip memory of one threadgroup.
    """

    flash: int
    standard: int
    threadgroup: int


def estimate_memory(
    config: AttentionConfig,
    *,
    batch: int,
    q_heads: int,
    kv_heads: int,
    queries: int,
    capacity: int,
    head_dim: int,
    itemsize: int = 2,
) -> MemoryEstimate:
    """Bytes that one call takes beside q, k and v.

    Args:
        config: as given to the operation.
        batch: rows.
        q_heads, kv_heads, head_dim: of the model.
        queries: new tokens of a row, N.
        capacity: keys of a slot, T.
        itemsize: bytes of an element.
    """
    plan = make_plan(
        config,
        groups=batch * kv_heads,
        queries=queries * (q_heads // kv_heads),
        capacity=capacity,
        head_dim=head_dim,
        itemsize=itemsize,
    )
    outputs = batch * q_heads * queries
    out = outputs * head_dim * itemsize
    partial = outputs * plan.splits * (head_dim + 2) * _FLOAT if plan.splits > 1 else 0
    return MemoryEstimate(
        flash=out + partial,
        standard=out + 2 * outputs * capacity * itemsize,
        threadgroup=plan.threadgroup_bytes(head_dim, itemsize),
    )
