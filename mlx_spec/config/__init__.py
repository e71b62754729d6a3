"""The frozen option objects: what to sample, how to speculate, how to batch, how to chat.

A command-line flag becomes a field here once, in the CLI, and nowhere else. Every field is
checked when the object is made, so that a bad value is refused where it was written and not
minutes later inside a step. Nothing here imports more than ``errors``.

Example::

    SamplingParams(max_tokens=200, temperature=0.8, top_p=0.95, seed=7)
    SpeculationConfig(num_draft_tokens=4, adaptive=False)
    BatchingConfig(batch_size=8, cache=CacheOptions(kv_bits=8))
    ChatConfig(system_prompt="Be brief.", chat_template_config={"enable_thinking": False})
"""

from mlx_spec.config.batching import BatchingConfig as BatchingConfig
from mlx_spec.config.caches import KEPT_TOKENS as KEPT_TOKENS
from mlx_spec.config.caches import PLAIN_CACHES as PLAIN_CACHES
from mlx_spec.config.caches import CacheOptions as CacheOptions
from mlx_spec.config.chat import ChatConfig as ChatConfig
from mlx_spec.config.sampling import SamplingParams as SamplingParams
from mlx_spec.config.shaping import LogitBias as LogitBias
from mlx_spec.config.speculation import SpeculationConfig as SpeculationConfig
from mlx_spec.config.structure import Structure as Structure
