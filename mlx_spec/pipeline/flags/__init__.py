"""The options that every command and every stage of a pipeline takes, each written once.

A group a file; ``Flags`` is all of them, one flat record under the flags' names, made from the
command line or from a config's table, and turned here and only here into the engine's option
objects: whose defaults and checks are theirs, and are not repeated. No mlx.
"""

from mlx_spec.pipeline.flags.batching import ACCUMULATION as ACCUMULATION
from mlx_spec.pipeline.flags.batching import PREFIX_CACHE_BYTES as PREFIX_CACHE_BYTES
from mlx_spec.pipeline.flags.batching import QUANTIZED_KV_START as QUANTIZED_KV_START
from mlx_spec.pipeline.flags.record import HEADS as HEADS
from mlx_spec.pipeline.flags.record import Flags as Flags
