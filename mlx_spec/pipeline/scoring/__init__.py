"""How probable an answer is behind a prompt: one forward pass, nothing is generated."""

from mlx_spec.platform import ensure_blas

# Before any module of this package imports mlx: a BLAS loaded later has no effect.
ensure_blas()
