"""What a step of a real model takes here, by tokens and by context, beside what the machine can do:
what the bounds of ``docs/scaling.md`` are held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx_spec.model  # noqa: F401  (the fast BLAS is loaded before mlx)

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_spec.bench.bandwidth import measure_bandwidth
from mlx_spec.model.loader import load
from mlx_spec.model.support import examine

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = ((1, 2048), (4, 512), (4, 2048), (16, 512), (16, 2048))  # rows, keys of each
ROUNDS = 5
_SIDE = 2048


def measure(name: str) -> dict[str, Any]:
    """Seconds of passes, and bandwidth and operations a second of this machine.

    Points are interleaved round by round; times are medians.
    """
    model, _ = load(name)
    sizes = [value for _, value in tree_flatten(model.parameters())]
    passes: dict[tuple[int, int], Callable[[], mx.array]] = {
        (tokens, 0): lambda tokens=tokens: model(mx.ones((tokens, 1), mx.int32))  # type: ignore[misc]
        for tokens in TOKENS
    }
    passes |= {where: _decoding(model, *where) for where in CONTEXTS}
    taken: dict[tuple[int, int], list[float]] = {where: [] for where in passes}
    for turn in range(ROUNDS + 1):
        for where, run in passes.items():
            seconds = _seconds(run)
            if turn:  # the first one reads everything for the first time
                taken[where].append(seconds)
    wide = mx.random.normal((_SIDE, _SIDE))
    product = min(_seconds(lambda: wide @ wide) for _ in range(ROUNDS))
    return {
        "model": "SmolLM2-135M-Instruct",
        "parameters": sum(value.size for value in sizes),
        "bytes": sum(value.nbytes for value in sizes),
        "kv": examine(model).cost.per_token,
        "layers": len(model.layers),
        "q_width": model.args.hidden_size,  # of all query heads
        "read": measure_bandwidth().best,
        "flops": 2 * _SIDE**3 / product,
        "passes": [[*where, statistics.median(each)] for where, each in taken.items()],
    }


def _decoding(model: Any, rows: int, keys: int) -> Callable[[], mx.array]:
    """One new token of each row behind so many keys, again and again at the same place."""
    empty = mx.zeros((rows, 1), mx.int32)
    first, caches = make_prompt_cache(model), make_prompt_cache(model)
    mx.eval(model(empty, cache=first))  # which shows the shapes of keys and values
    for cache, like in zip(caches, first, strict=True):
        _, heads, _, dim = like.keys.shape
        mx.eval(cache.update_and_fetch(*(mx.random.normal((rows, heads, keys, dim)),) * 2))

    def run() -> mx.array:
        out: mx.array = model(empty, cache=caches)
        for cache in caches:
            cache.trim(1)
        return out

    return run


def _seconds(run: Callable[[], mx.array]) -> float:
    started = time.perf_counter()
    mx.eval(run())
    return time.perf_counter() - started
