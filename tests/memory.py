"""How much MLX holds, measured so that a limit built on it means the same in any company."""

from __future__ import annotations

import gc

import mlx.core as mx

from mlx_spec.batching.memory import LEDGER


def settled_memory() -> int:
    """Bytes of what still lives, as an engine that is made next will see them.

    Garbage of earlier tests goes first: if it went in the middle, there would be more room than the
    limit was meant to leave. No earlier engine may be left, since it would have a claim.
    """
    gc.collect()
    assert LEDGER.held() == 0, "an engine of an earlier test still holds caches"
    return int(mx.get_active_memory())
