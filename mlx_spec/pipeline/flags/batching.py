"""How many prompts run together, and in how much memory."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.config import BatchingConfig, CacheOptions
from mlx_spec.load_config import LoadConfig
from mlx_spec.pipeline.flag_values import memory_size
from mlx_spec.pipeline.flags.setting import setting
from mlx_spec.pipeline.options import option

# Prompts of one run nearly always begin alike: a template, a system prompt.
PREFIX_CACHE_BYTES = 2**28
# As of mlx-lm's command: shorter texts stay as they are.
QUANTIZED_KV_START = 5000
# Seconds; they come one by one, from a file or a pipe, and most are there within this.
ACCUMULATION = 0.1

_loading = setting(LoadConfig, "Models")
_batching = setting(BatchingConfig, "Batching and memory", changes_text=False)
_cache = setting(CacheOptions, "Batching and memory")


@dataclass(frozen=True)
class BatchingFlags:
    """How many prompts run together, and in how much memory."""

    batch_size: int = _batching("batch_size", "Most prompts decoded together, in rows.")
    batch_timeout: float = _batching(
        "batch_timeout", "Longest wait for a batch, in seconds.", default=ACCUMULATION
    )
    batching: bool = option(
        True,
        "Together, or one at a time.",
        group="Batching and memory",
        off="--no-batching",
        changes_text=False,
    )
    prefill_step_size: int = _batching("prefill_step_size", "Most prompt tokens of a row a pass.")
    memory_limit: str | float | None = _batching(
        "memory_limit",
        "Most memory for models and K/V: 8GB, bytes, or a share of the device's (50%, 0.5). "
        "Requests wait where it is reached. Default: 0.9.",
        metavar="SIZE|SHARE",
        parse=memory_size,
    )
    prefix_cache_bytes: int = _batching(
        "prefix_cache_bytes",
        "What prompts begin with is computed once and kept in so much memory; 0: never.",
        default=PREFIX_CACHE_BYTES,
    )
    kv_bits: int | None = _cache(
        "kv_bits",
        "Keep keys and values in so many bits a number, 4 or 8. Changes the text a little.",
    )
    kv_group_size: int = _cache(
        "kv_group_size", "Numbers that share a scale: 32, 64 or 128; with --kv-bits."
    )
    quantized_kv_start: int = _cache(
        "quantized_kv_start",
        "With --kv-bits: tokens from this position on read quantized ones; 0: all.",
        default=QUANTIZED_KV_START,
    )
    max_kv_size: int | None = _cache(
        "max_kv_size",
        "Most tokens that full attention looks back to, the first 4 among them. Changes the text.",
    )
    kernels: str = _loading(
        "kernels",
        "Metal kernels of our own: auto (those found right and quicker on this machine), metal "
        "(all) or reference (none).",
        metavar="WHICH",
        changes_text=False,
    )
    unordered: bool = option(False, "Write results as they come, not in the input's order.")
