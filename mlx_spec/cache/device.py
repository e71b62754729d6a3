"""What the device asks of the shapes of passes.

Where a pass of a new shape is planned first, and planning takes longer than ten passes, shapes that
come again are worth more than a few keys and queries that are computed for nothing. On an NVIDIA
H200 a step of sixteen rows with guesses waited 72 ms for one of 15: cuDNN's attention of more than
one query a row is planned anew for each number of rows, queries and keys (docs/LOG.md).
"""

from __future__ import annotations

import mlx.core as mx

# Queries a row; what is longer is a prompt's, which comes once.
SHORT = 64


def plans_by_shape() -> bool:
    """Whether attention is planned for each shape: on MLX's CUDA build."""
    return asks_dearly() and not mx.metal.is_available()


def asks_dearly() -> bool:
    """Whether a call of attention costs more than queries that nobody needs: on any GPU."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)
