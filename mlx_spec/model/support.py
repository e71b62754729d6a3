"""Whether this engine can run a model, and how exactly: asked before anything is generated.

The engine runs rows of a batch at positions of their own and takes one or several new tokens a
row. Most of mlx-lm's models do that unmodified. Some keep a state that cannot be rolled back, some
take one position for all rows, and some compute one new token in another way than several, so that
equal tokens may come out of numbers that differ in their last bits. Nothing is computed here: the
pass is described as a graph and dropped. ``known_support`` remembers the verdict.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layout import model_name as model_name
from mlx_spec.cache.layout import plan
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.span import Span
from mlx_spec.config import PLAIN_CACHES, CacheOptions
from mlx_spec.errors import UnsupportedModel

Verdict = Literal["exact", "near-ties", "refused"]

# "if L == 1:" and the like, in the code of a layer: a branch for one new token.
_ONE_TOKEN = re.compile(
    r"\bif\s+(?:\w+\s+and\s+)?(?:L|S|T|N|length|seq_len|seqlen|\w+\.shape\[1\])\s*(?:==|>)\s*1\b"
)


@dataclass(frozen=True)
class Support:
    """What may be expected of a model here.

    Attributes:
        verdict: ``"exact"``: one new token and several are computed alike, so speculation changes
            nothing where the device computes rows alike. ``"near-ties"``: they are not, so that
            two tokens that are as good as equally likely may change places. ``"refused"``.
        reason: why, in words; empty for ``"exact"``.
        grouped_masks: attention masks need an axis for groups of query heads (``Span.grouped``).
        vocabulary: size of the logits' last axis; padded embeddings make it exceed the tokenizer's.
        cost: bytes that a row's caches take over all layers, by its tokens.
    """

    verdict: Verdict
    reason: str = ""
    grouped_masks: bool = False
    vocabulary: int = 0
    cost: RowCost = field(default_factory=RowCost)


def examine(model: Any, options: CacheOptions = PLAIN_CACHES) -> Support:
    """The verdict on a model over caches as ``options`` say, without computing anything."""
    name = model_name(model)
    try:
        passed = _pass(model, options, grouped=False)
        if isinstance(passed, str):
            other = _pass(model, options, grouped=True)
            passed = passed if isinstance(other, str) else other
    except UnsupportedModel as error:
        return Support("refused", str(error))
    if isinstance(passed, str):
        what = (
            "run rows at different positions"
            if options.kv_bits is None
            else f"read keys and values in {options.kv_bits} bits (kv_bits)"
        )
        return Support("refused", f"mlx-lm's code of this {name!r} model cannot {what}: {passed}")
    apart = _apart(model)
    if apart is None:
        return passed
    reason = (
        f"{apart} computes one new token in another way than several, so that near-ties may fall "
        "differently with drafts than without"
    )
    return replace(passed, verdict="near-ties", reason=reason)


def _pass(model: Any, options: CacheOptions, *, grouped: bool) -> Support | str:
    """What the passes of this engine show of a model, or why it cannot run them.

    Two numbers of rows: where an axis of a mask falls on another one of the model's, one of the
    two could be equal by chance, and the pass would be wrong without a word.
    """
    for rows, width, uniform in ((2, 3, False), (5, 3, False), (2, 1, False), (2, 3, True)):
        pool = KVCachePool(plan(model, options), rows)
        pool.acquire(rows)
        pool.reserve(width + 1)
        starts = mx.ones(rows, mx.int32) if uniform else mx.arange(rows, dtype=mx.int32) % 2
        pool.bind(Span(0, rows, starts, width, width + 1, uniform, grouped))
        try:
            logits = model(mx.zeros((rows, width), mx.int32), cache=pool.layers)
        except UnsupportedModel as error:  # in a cache's own words
            raise UnsupportedModel(f"this {model_name(model)!r} model: {error}") from error
        except Exception as error:  # whatever the code of a model raises
            return _words(error)
        if logits.ndim != 3 or logits.shape[:2] != (rows, width):
            return f"logits of shape {logits.shape} for {rows} rows of {width} tokens"
    return Support("exact", "", grouped, logits.shape[-1], pool.cost)


def _apart(model: Any) -> str | None:
    """The class of a layer that has a branch for one new token, if there is one."""
    classes = {cls for _, module in model.named_modules() for cls in type(module).__mro__}
    return min((cls.__name__ for cls in classes if _has_branch(cls)), default=None)


@cache
def _has_branch(cls: type) -> bool:
    """Whether the code of a class asks whether there is one new token."""
    if cls.__module__.startswith(("mlx.nn", "mlx_spec")):
        return False
    try:
        return _ONE_TOKEN.search(inspect.getsource(cls)) is not None
    except (OSError, TypeError):
        return False  # a builtin, or made without a source


def _words(error: Exception) -> str:
    """An exception of a model's code on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
