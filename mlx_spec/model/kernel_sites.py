"""Where a model would call our kernels, and with what shapes: asked of the model itself.

A pass is described as a graph with recorders in the kernels' places, and dropped: nothing is
computed, and weights that are not read yet stay unread. So it holds for every family that the
kernels can be bound into, whatever its config calls its heads.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from metal_kernels.trials.site import KernelSite, importance
from mlx_spec.cache.layout import plan
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.model.kernel_binding import OPERATIONS, bind_operations
from mlx_spec.model.known_support import support_of
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.rows import Rows

_ROWS, _TOKENS = 2, 3  # of the pass


def sites_of(model: Any) -> tuple[KernelSite, ...]:
    """The different places where a model calls operations that have kernels.

    Empty where this engine cannot run the model. What was bound into it is unbound.
    """
    recorder = _Recorder()
    support = support_of(model)
    if support.verdict == "refused":
        return ()
    pool = KVCachePool(plan(model), _ROWS)
    pool.acquire(_ROWS)
    pool.reserve(_TOKENS + 1)
    rows = Rows(
        mx.zeros((_ROWS, _TOKENS), mx.int32),
        mx.arange(_ROWS, dtype=mx.int32),
        _TOKENS + 1,
        at=tuple(range(_ROWS)),
        tentative=not support.form.tokens_apart,
    )
    # Fused ones hide the single ones, which may be taken without them.
    single = {name: recorder.operations[name] for name in ("rms_norm", "rope")}
    for operations in (recorder.operations, single):
        with bind_operations(model, operations):
            run = make_pass(support.form, model, pool, grouped=support.grouped_masks)
            logits = run.forward(rows)[0]
    recorder.note("sample", logits)
    return tuple(sorted(recorder.sites, key=importance))


class _Recorder:
    """Stands in the kernels' places: notes what comes in, and answers as their references do."""

    def __init__(self) -> None:
        self.sites: set[KernelSite] = set()
        notes = {
            "rms_norm": self._norm,
            "add_rms_norm": self._add_norm,
            "rope": self._rope,
            "norm_rope": self._norm_rope,
            "attention": self._attention,
        }
        self.operations = {name: _noting(name, note) for name, note in notes.items()}

    def note(self, operation: str, like: mx.array, **more: Any) -> None:
        """One call, on an array of this type and width."""
        dtype = str(like.dtype).removeprefix("mlx.core.")
        self.sites.add(KernelSite(operation, dtype, like.shape[-1], **more))

    def _norm(self, x: mx.array, weight: mx.array | None = None, eps: float = 0.0) -> None:
        vectors = max(1, x.size // (x.shape[-1] * _ROWS * _TOKENS))
        self.note("rms_norm", x, q_heads=vectors, weight=_type(weight))

    def _add_norm(self, x: mx.array, residual: mx.array, weight: mx.array, eps: float) -> None:
        self.note("add_rms_norm", x, weight=_type(weight))

    def _rope(self, x: mx.array, offsets: mx.array, **turns: Any) -> None:
        self.note("rope", x, q_heads=x.shape[1], **_turns(turns))

    def _norm_rope(
        self, queries: mx.array, keys: mx.array, *weights: mx.array, eps: float, **turns: Any
    ) -> None:
        heads = {"q_heads": queries.shape[1], "kv_heads": keys.shape[1]}
        self.note("norm_rope", queries, weight=_type(weights[0]), **heads, **_turns(turns))

    def _attention(
        self, q: mx.array, k: mx.array, *arrays: Any, window: int | None, sinks: Any, scale: float
    ) -> None:
        heads = {"q_heads": q.shape[1], "kv_heads": k.shape[1]}
        self.note("attention", q, **heads, window=window or 0, sinks=sinks is not None)


def _noting(name: str, note: Any) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        note(*arguments, **options)
        return OPERATIONS[name].reference(*arguments, **options)

    return call


def _type(weight: mx.array | None) -> str:
    return "" if weight is None else str(weight.dtype).removeprefix("mlx.core.")


def _turns(turns: dict[str, Any]) -> dict[str, Any]:
    custom = turns.get("freqs") is not None
    return {"dims": turns["dims"], "traditional": turns["traditional"], "custom": custom}
