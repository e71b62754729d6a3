"""From lists of requests to streams of text: rows that join and leave."""

from mlx_spec.platform import ensure_blas

# Before any module of this package imports mlx: a BLAS loaded later has no effect.
ensure_blas()
