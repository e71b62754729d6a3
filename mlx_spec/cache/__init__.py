"""KV caches behind mlx-lm's cache protocol."""

from mlx_spec.platform import ensure_blas

# Before any module of this package imports mlx: a BLAS loaded later has no effect.
ensure_blas()
