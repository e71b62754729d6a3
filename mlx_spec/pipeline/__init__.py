"""Records through models: read, prompt, generate or score, write, and go on after a crash.

``runner`` feeds a ``Stage`` record by record and writes each result as it comes; ``checkpoint``
makes an interrupted output continue as if nothing had happened; ``chain`` runs several stages.
"""

from mlx_spec.platform import ensure_blas

# Before mlx is imported by anything below: see platform.
ensure_blas()
