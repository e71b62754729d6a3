"""``BatchingConfig``: how many requests run together, in how much memory."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.config.caches import PLAIN_CACHES, CacheOptions
from mlx_spec.config.checks import check_integer, check_number, plain_numbers
from mlx_spec.errors import InvalidRequest


@dataclass(frozen=True)
class BatchingConfig:
    """How many requests run together, in how much memory, and how prompts are fed.

    Attributes:
        batch_size: most sequences decoded together, in rows.
        batch_timeout: accumulation: while nothing runs, the longest wait for a batch to fill (with
            requests, or with as many tokens as fit), in seconds of the first request's waiting. 0
            starts at once: a request that comes later joins at the next step, so a lone one gains
            nothing by waiting for company. More is for bursts that shall begin together. Only a
            ``BatchedMLXGenerator`` waits; a closed list of prompts is complete and never does.
            (The stages of a pipeline take ``Flags``, whose default is 0.1.)
        max_batch_tokens: most tokens that the running sequences may come to hold together,
            prompts and outputs; None for no such limit.
        max_seq_len: most tokens of one sequence, prompt and output; None for the model's context.
        memory_limit: most memory of models, K/V and prefix cache: bytes (an int), or the share
            (a float in (0, 1]) of what the device recommends. None is 0.9 of it.
        block_size: tokens a block of the prefix cache, and of byte accounting.
        prefix_cache_bytes: most bytes kept of repeated beginnings of prompts, for the target and
            as much again for the draft, together at most a quarter of the memory beside the
            models; 0 keeps none. (The command line keeps 256 MB: prompts of one run mostly begin
            alike.)
        enable_preemption: a more urgent request may take a running one's place for a while.
        aging: seconds of waiting that count as one level of priority, so that nobody starves.
        prefill_step_size: most prompt tokens fed at once while nothing decodes.
        prefill_pause_ms: bounds the pause that newcomers' long prompts make in the streams of rows
            that decode: between two tokens of a running stream the target reads as many prompt
            tokens as take it about so many milliseconds, and a draft model a quarter as long. What
            a token costs is measured, model by model. At least 64 tokens, since fewer cost hardly
            less: where those take longer, so does the pause.
        prefill_interleave: the same bound in tokens instead, whatever they cost (but for those that
            take more than a second); None: ``prefill_pause_ms`` says it.
        cache: what is kept of tokens that were read: quantized, or not all.

    Raises:
        InvalidRequest: a value outside its range.
    """

    batch_size: int = 32
    batch_timeout: float = 0.0
    max_batch_tokens: int | None = None
    max_seq_len: int | None = None
    memory_limit: int | float | None = None
    block_size: int = 16
    prefix_cache_bytes: int = 0
    enable_preemption: bool = True
    aging: float = 10.0
    prefill_step_size: int = 2048
    prefill_pause_ms: float = 100.0
    prefill_interleave: int | None = None
    cache: CacheOptions = PLAIN_CACHES

    def __post_init__(self) -> None:
        plain_numbers(self)
        owner = "BatchingConfig"
        check_integer(owner, "batch_size", self.batch_size, 1)
        check_number(owner, "batch_timeout", self.batch_timeout, 0.0, 3600.0, "[0, 3600]")
        for name, least in (("max_batch_tokens", 2), ("max_seq_len", 2), ("prefill_interleave", 1)):
            if getattr(self, name) is not None:
                check_integer(owner, name, getattr(self, name), least)
        if isinstance(self.memory_limit, float):
            check_number(owner, "memory_limit", self.memory_limit, 0.0, 1.0, "(0, 1] or bytes")
        elif self.memory_limit is not None:
            check_integer(owner, "memory_limit", self.memory_limit, 1)
        check_integer(owner, "block_size", self.block_size, 1)
        check_integer(owner, "prefix_cache_bytes", self.prefix_cache_bytes, 0)
        check_number(owner, "aging", self.aging, 0.0, 1e9, "[0, 1e9]")
        check_integer(owner, "prefill_step_size", self.prefill_step_size, 1)
        check_number(owner, "prefill_pause_ms", self.prefill_pause_ms, 1.0, 60_000.0, "[1, 60000]")
        if not isinstance(self.cache, CacheOptions):
            raise InvalidRequest(f"[{owner}] cache={self.cache!r}, expected a CacheOptions")
