"""The models: finding and loading them, checking a pair, and the one way into their forward."""

from mlx_spec.platform import ensure_blas

# Before any module of this package imports mlx: a BLAS loaded later has no effect.
ensure_blas()
