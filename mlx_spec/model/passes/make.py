"""The pass that a model's form asks for."""

from __future__ import annotations

from typing import Any

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.model.passes.apart import Apart, Inner
from mlx_spec.model.passes.beginners_apart import BeginnersApart
from mlx_spec.model.passes.form import ModelPass, PassForm
from mlx_spec.model.passes.row_by_row import RowByRow
from mlx_spec.model.passes.token_by_token import TokenByToken
from mlx_spec.model.passes.tokens_as_rows import TokensAsRows
from mlx_spec.model.passes.whole import Whole


def make_pass(form: PassForm, model: Any, pool: KVCachePool, *, grouped: bool) -> ModelPass:
    """A model's passes over its slots, in the form that it needs."""
    if form.tokens_as_rows and not pool.folds:  # else its attention alone (``as_rows``)
        return TokensAsRows(model, pool, grouped)
    inner: Inner = TokenByToken if form.tokens_apart else Whole
    if form.rows_apart:
        return RowByRow(Apart(model, pool, grouped, inner))
    if form.beginners_apart:
        return BeginnersApart(model, pool, grouped, inner)
    return inner(model, pool, grouped)
