"""The pass that a model's form asks for."""

from __future__ import annotations

from typing import Any

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.model.passes.form import ModelPass, PassForm
from mlx_spec.model.passes.row_by_row import Inner, RowByRow
from mlx_spec.model.passes.token_by_token import TokenByToken
from mlx_spec.model.passes.whole import Whole


def make_pass(form: PassForm, model: Any, pool: KVCachePool, *, grouped: bool) -> ModelPass:
    """A model's passes over its slots, in the form that it needs."""
    inner: Inner = TokenByToken if form.tokens_apart else Whole
    return RowByRow(model, pool, grouped, inner) if form.rows_apart else inner(model, pool, grouped)
