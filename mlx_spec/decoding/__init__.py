"""Sampling, acceptance, drafting and the one ragged step."""

from mlx_spec.platform import ensure_blas

# Before any module of this package imports mlx: a BLAS loaded later has no effect.
ensure_blas()
