"""A soak that is to leave nothing behind: what all of them look at."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.sequence import Sequence
from tests.test_soak import MLX_BYTES, Soak, Witness, alive
from tests.test_soak import check_streams as check_all_streams

WARM = 24  # requests that make what is made once


def soaked(
    make: Callable[[Witness], BatchedMLXGenerator],
    begun: Callable[[BatchedMLXGenerator], object],
    kind: type[Soak],
    requests: int,
) -> tuple[Soak, Any]:
    """A soak and the generator's statistics; no request and no memory of MLX's outlives it.

    Args:
        make: the generator, anew each time.
        begun: has it make what stays for good.
        kind: what is asked for.
        requests: how many.
    """
    witness = Witness()
    with make(witness) as generator:
        begun(generator)
        kind(generator, witness, seed=5, requests=WARM).run()
    gc.collect()
    mx.clear_cache()
    before, living = mx.get_active_memory(), alive(Sequence)
    witness = Witness()
    with make(witness) as generator:
        soak = kind(generator, witness, seed=5, requests=requests)
        soak.run()
        generator.drain(10)
        stats = generator.stats()
        assert alive(Sequence) <= living
    check_all_streams(soak, witness)
    assert stats.finished + stats.cancelled == requests
    gc.collect()
    mx.clear_cache()
    assert mx.get_active_memory() - before <= MLX_BYTES
    return soak, stats
