"""Drafts made for a target, from its answers and from its hidden states behind them."""

from __future__ import annotations

from mlx_spec.platform import ensure_blas

ensure_blas()
