"""Whether a model's passes may be packed: any number of tokens of each row, none for holes.

To the model a packed pass is one of plain decoding, of more rows than the caches know: all that
differs is what its attention function is called with. So a model packs where the code of all its
layers calls mlx-lm's attention function, with what its own cache returned and with the cache's
mask. That shows when such a pass is described: the numbers of rows, tokens and heads of the cases
have nothing in common, so that what meets unprepared has shapes that do not fit. Then numbers are
compared with those of the rectangle, of as many layers as it takes to have each kind once: what
a layer writes shows what those before it gave, and the others are never computed. Layers that fold
tokens into a state read a row's in their order, and never pack.

A verdict is remembered as long as that on the model itself (``known_support``) is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.cache.layout import plan
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.config import PLAIN_CACHES, CacheOptions
from mlx_spec.model.attention import bind_attention, unbind_attention
from mlx_spec.model.passes.form import WHOLE, ModelPass, PassForm
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.passes.packed import PackedPass
from mlx_spec.model.ranks import ranks_of
from mlx_spec.model.rows import Rows
from mlx_spec.model.support import Support
from mlx_spec.weak_memo import WeakMemo

# Of 32 bits, and of fewer: how far numbers of the two may be apart, of the largest.
_NEAR, _NEARLY = 1e-3, 5e-2


class _Case(NamedTuple):
    """A pass to be tried.

    Attributes:
        counts: tokens of each row.
        tokens: of the packed pass, those beyond included.
        at: where the rows stand.
        uniform: all at one place, and told so.
    """

    counts: tuple[int, ...]
    tokens: int
    at: tuple[int, ...]
    uniform: bool = False


_CASES = (
    _Case((3, 1, 2, 1, 1), 11, (0, 1, 0, 1, 0)),
    _Case((1, 4, 2), 7, (0, 1, 0)),
    _Case((1, 1, 1), 5, (1, 1, 1), True),
)
_COMPARED = _Case((3, 1, 2), 8, (0, 0, 0))
_KNOWN = WeakMemo[tuple[Support, bool]]()


def packs(model: Any, options: CacheOptions, support: Support) -> bool:
    """The verdict; a model that packs has its attention bound from then on.

    Args:
        model: one that ``support`` does not refuse.
        options: what its caches keep.
        support: the verdict on that.
    """
    if not isinstance(model, nn.Module):
        return False  # nothing says what is in it
    known = _KNOWN.get(model, key=options)
    if known is None or known[0] is not support:
        known = _KNOWN.keep((support, _examine(model, options, support)), model, key=options)
    return known[1]


def _examine(model: Any, options: CacheOptions, support: Support) -> bool:
    rows = PassForm(tokens_as_rows=True)
    if support.form not in (WHOLE, rows) or KVCachePool(plan(model, options), 1).folds:
        return False
    bound = [] if support.form == rows else bind_attention(model)
    kinds = [options]
    if options.late:  # also with queries of both kinds, and past the start
        kinds.append(replace(options, quantized_kv_start=1))
    try:
        fits = all(_fits(model, own, support, case) for own in kinds for case in _CASES)
        right = fits and _alike(model, support)
    except Exception:  # whatever the code of a model raises
        right = False
    if all(ranks_of(model).gather("packing", right)):
        return True
    unbind_attention(bound)
    return False


def _fits(model: Any, options: CacheOptions, support: Support, case: _Case) -> bool:
    """Whether such a pass can be described."""
    logits, _ = _passed(model, options, support, case)
    return logits.shape == (case.tokens, 1, support.vocabulary)


def _passed(
    model: Any, options: CacheOptions, support: Support, case: _Case, *, packed: bool = True
) -> tuple[mx.array, KVCachePool]:
    """Logits of such a pass, which nobody computes here, and the caches that it has written."""
    rows, width = len(case.counts), max(case.counts)
    pool = KVCachePool(plan(model, options), rows)
    pool.acquire(rows)
    pool.reserve(width + 1)
    form, grouped = support.form, support.grouped_masks
    passes: ModelPass = (
        PackedPass(model, pool, form, grouped)
        if packed
        else make_pass(form, model, pool, grouped=grouped)
    )
    logits, *_ = passes.forward(
        Rows(
            mx.arange(rows * width, dtype=mx.int32).reshape(rows, width) % support.vocabulary,
            mx.array(case.at, mx.int32),
            width + 1,
            uniform=case.uniform,
            counts=None if case.uniform else mx.array(case.counts, mx.int32),
            at=case.at,
            tentative=True,
            packing=TokenPacking.of(case.counts, case.tokens) if packed else None,
        )
    )
    return logits, pool


def _alike(model: Any, support: Support) -> bool:
    """Whether a packed pass gives the numbers of its rectangle. Caches of few bits are read by the
    same code, and would hide small differences."""
    ours, pool = _passed(model, PLAIN_CACHES, support, _COMPARED)
    theirs, other = _passed(model, PLAIN_CACHES, support, _COMPARED, packed=False)
    pairs: list[tuple[mx.array, mx.array]] = []
    if ranks_of(model).several:  # passes that are computed together would mix what is sent
        mx.eval(ours)
        mx.eval(theirs)
    else:
        pairs += zip(_written(model, pool), _written(model, other), strict=True)
    if not pairs:  # some kind of layer writes nothing that shows it
        packing = TokenPacking.of(_COMPARED.counts, _COMPARED.tokens)
        pairs = [
            (packing.spread(ours[:, 0])[row, :count], theirs[row, :count])
            for row, count in enumerate(_COMPARED.counts)
        ]
    return all(_near(one, another) for one, another in pairs)


def _written(model: Any, pool: KVCachePool) -> list[mx.array]:
    """What rows' caches hold up to the layer after those that have each kind once; nothing where
    that is behind the last."""
    layers = list(getattr(model, "layers", ()))
    if len(layers) != len(pool.layers):
        return []
    kinds = [
        (type(cache), getattr(cache, "ring", None), *_kind(layer))
        for cache, layer in zip(pool.layers, layers, strict=True)
    ]
    most = 1 + max(map(kinds.index, kinds))
    if most == len(layers):
        return []
    return [
        array
        for row, count in enumerate(_COMPARED.counts)
        for layer in pool.layers[: most + 1]
        for array in layer.save(row, 0, count).flat
    ]


def _kind(layer: Any) -> tuple[Any, ...]:
    """The classes of a layer's modules, and the switches that they hold."""
    return tuple(
        (type(module), *(value for value in vars(module).values() if isinstance(value, bool)))
        for _, module in layer.named_modules()
    )


def _near(one: mx.array, other: mx.array) -> bool:
    near = _NEAR if other.dtype == mx.float32 else _NEARLY
    one, other = one.astype(mx.float32), other.astype(mx.float32)
    return bool((mx.abs(one - other).max() <= near * mx.abs(other).max()).item())
