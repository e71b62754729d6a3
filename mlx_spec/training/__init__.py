"""Drafts made for a target: its answers, what it thought while it wrote them, and training on both."""

from __future__ import annotations

from mlx_spec.platform import ensure_blas

ensure_blas()
