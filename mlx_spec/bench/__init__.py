"""How fast a model is on this machine, with and without drafts: ``mlx-spec bench``.

``options`` is what is asked for, ``prompts`` what the model is asked, ``plan`` what of the grid
fits into the time, ``contest`` one model and its ``arms``, ``course`` runs them in turn,
``conclusions`` and ``findings`` say what it means and which flags to use; ``table``, ``chart`` and
``record`` show it.
"""

from __future__ import annotations

from mlx_spec.platform import ensure_blas

ensure_blas()
