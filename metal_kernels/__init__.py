"""Metal kernels for batched decoding, each beside a pure-mlx reference.

What MLX's own operations cannot do, or do in several passes over the same bytes: attention over
slots by length instead of a mask, the residual add fused with the norm after it, and the norms of
queries and keys fused with their rotation; and sampling without a sort or an array of noise. Every
operation is an :class:`Operation`: called plainly it takes whichever implementation :func:`use`
says, and ``.reference`` and ``.kernel`` are the two with one signature. All are batched, with a
position or length of its own for each row.

A leaf package: it imports mlx and nothing of ``mlx_spec``. Plain calls take the references unless
:func:`use` says otherwise; which kernels a model runs by default is decided by trials on the
user's own machine (``trials``), never by hope.

Example::

    import metal_kernels

    total, normed = metal_kernels.add_rms_norm(x, residual, weight)
    with metal_kernels.use("metal"):
        out = metal_kernels.attention(q, k, v, [17, 5, 230], scale=0.125)
"""

from metal_kernels._runtime import Operation, available, use
from metal_kernels.attention import Attention, attention
from metal_kernels.attention_inputs import Lengths
from metal_kernels.attention_plan import AttentionConfig, MemoryEstimate
from metal_kernels.lead import leads
from metal_kernels.rms_norm import add_rms_norm, rms_norm
from metal_kernels.rope import norm_rope, rope
from metal_kernels.sample import Sampled, sample
from metal_kernels.sample_extras import MoreFilters
from metal_kernels.sample_probabilities import probabilities, uniforms
from metal_kernels.sample_rows import SampleRows

__all__ = [
    "Attention",
    "AttentionConfig",
    "Lengths",
    "MemoryEstimate",
    "MoreFilters",
    "Operation",
    "SampleRows",
    "Sampled",
    "add_rms_norm",
    "attention",
    "available",
    "leads",
    "norm_rope",
    "probabilities",
    "rms_norm",
    "rope",
    "sample",
    "uniforms",
    "use",
]
