"""The frozen option objects: what to sample, how to speculate, how to batch, how to chat.

A command-line flag becomes a field here once, in the CLI, and nowhere else. Every field is
checked when the object is made, so that a bad value is refused where it was written and not
minutes later inside a step. This module imports ``errors`` only.

Example::

    SamplingParams(max_tokens=200, temperature=0.8, top_p=0.95, seed=7)
    SpeculationConfig(num_draft_tokens=4, adaptive=False)
    BatchingConfig(batch_size=8, cache=CacheOptions(kv_bits=8))
    ChatConfig(system_prompt="Be brief.", chat_template_config={"enable_thinking": False})
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from mlx_spec.errors import InvalidRequest

ACCEPTANCE_RULES = ("shared_noise",)
KV_BITS = (2, 4, 8)
KV_GROUP_SIZES = (32, 64, 128)
# A text's first tokens, which caches of limited size never forget: as many as mlx-lm keeps.
KEPT_TOKENS = 4
# What a chat template is called with by us, and no user's keyword may replace.
_TEMPLATE_KEYWORDS = {
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tools",
}


def _number(owner: str, name: str, value: Any, low: float, high: float, bounds: str) -> None:
    """Refuse what is not a finite number in the interval written as ``bounds``."""
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if valid:
        valid = (value > low if bounds[0] == "(" else value >= low) and value <= high
    if not valid:
        raise InvalidRequest(f"[{owner}] {name}={value!r}, expected a number in {bounds}")


def _plain_numbers(options: Any) -> None:
    """Make numpy's numbers Python's own, so that all checks and messages speak of one kind."""
    for item in fields(options):
        value = getattr(options, item.name)
        if isinstance(value, Integral) and not isinstance(value, (bool, int)):
            object.__setattr__(options, item.name, int(value))
        elif isinstance(value, Real) and not isinstance(value, (bool, int, float)):
            object.__setattr__(options, item.name, float(value))


def _integer(owner: str, name: str, value: Any, low: int) -> None:
    """Refuse what is not an integer of at least ``low``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InvalidRequest(f"[{owner}] {name}={value!r}, expected an integer >= {low}")


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen and when it ends.

    The filters act as in mlx-lm, on untempered probabilities: top-p, min-p and top-k each keep
    an upper part of the ranking and a token must be kept by all of them. Among equally probable
    tokens the lower id ranks first.

    Attributes:
        max_tokens: most tokens to generate, >= 1.
        temperature: 0 is greedy; > 0 samples.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        top_k: keep the k most probable tokens; 0 keeps all.
        min_p: keep tokens at least this times as probable as the best one, in [0, 1].
        seed: the sample at each position depends on this and the position only, so a seed
            gives the same text alone or in any batch, with or without a draft. None draws one.
        stop: texts that end the generation, or one; they are not part of the output. Kept as a
            tuple.
        stop_token_ids: tokens that end it, or one, beside the tokenizer's end-of-sequence tokens.
            Kept as a tuple.
        ignore_eos: go on past end-of-sequence tokens (benchmarks).

    Raises:
        InvalidRequest: a value outside its range.
    """

    max_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Seq[str] | None = ()
    stop_token_ids: int | Seq[int] | None = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _plain_numbers(self)
        owner = "SamplingParams"
        _integer(owner, "max_tokens", self.max_tokens, 1)
        _number(owner, "temperature", self.temperature, 0.0, 100.0, "[0, 100]")
        _number(owner, "top_p", self.top_p, 0.0, 1.0, "(0, 1]")
        _integer(owner, "top_k", self.top_k, 0)
        _number(owner, "min_p", self.min_p, 0.0, 1.0, "[0, 1]")
        if self.seed is not None:
            _integer(owner, "seed", self.seed, 0)
        # A lone text or token, or None, is what people write for one stop, or for none.
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
            kept = tuple(value) if several else () if value is None else (value,)
            object.__setattr__(self, name, kept)
        for text in self.stop_texts:
            if not isinstance(text, str) or not text:
                raise InvalidRequest(f"[{owner}] stop={text!r}, expected non-empty texts")
        for token in self.stop_ids:
            _integer(owner, "stop_token_ids", token, 0)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """``stop``, as the tuple that it is kept as."""
        return self.stop  # type: ignore[return-value]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``stop_token_ids``, as the tuple that it is kept as."""
        return self.stop_token_ids  # type: ignore[return-value]


@dataclass(frozen=True)
class SpeculationConfig:
    """Whether and how far a drafter guesses ahead of the target.

    Attributes:
        enabled: False decodes plainly even when a draft model is given.
        num_draft_tokens: draft length K, in tokens; the maximum when ``adaptive``.
        adaptive: choose K step by step from measured cost and acceptance, down to 0 and back.
        acceptance: ``"shared_noise"``: a draft token is accepted iff it is the target's own
            sample, both drawn with the same noise (exact token for token).
        probe_interval: fewest steps between trials of speculation while it is parked at K=0;
            where a trial is dear it waits longer, up to 16 times as long.
        hysteresis: relative gain in predicted goodput that a change of K must promise.

    Raises:
        InvalidRequest: a value outside its range.
    """

    enabled: bool = True
    num_draft_tokens: int = 6
    adaptive: bool = True
    acceptance: str = "shared_noise"
    probe_interval: int = 32
    hysteresis: float = 0.03

    def __post_init__(self) -> None:
        _plain_numbers(self)
        owner = "SpeculationConfig"
        _integer(owner, "num_draft_tokens", self.num_draft_tokens, 0)
        _integer(owner, "probe_interval", self.probe_interval, 1)
        _number(owner, "hysteresis", self.hysteresis, 0.0, 1.0, "[0, 1]")
        if self.acceptance not in ACCEPTANCE_RULES:
            raise InvalidRequest(
                f"[{owner}] acceptance={self.acceptance!r}, expected one of {ACCEPTANCE_RULES}"
            )


@dataclass(frozen=True)
class CacheOptions:
    """What models keep of the tokens that they have read; of target and draft alike.

    Unlike other options of batching these change the text, as they do in mlx-lm: attention reads
    other numbers, or fewer tokens.

    Attributes:
        kv_bits: keep keys and values of full attention in so many bits a number, 4 or 8 (or 2);
            None keeps them as the model computes them. Sliding windows and recurrent states, which
            do not grow with the text, stay as they are.
        kv_group_size: numbers of a head that share a scale and a bias: 32, 64 or 128.
        quantized_kv_start: with ``kv_bits``, the position from which on tokens read quantized keys
            and values, those of all earlier tokens too; 0 from the first token on.
        max_kv_size: most tokens that full attention looks back to, a text's first 4 always among
            them; None for all. Not together with ``kv_bits``.

    Raises:
        InvalidRequest: a value outside its range.
    """

    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0
    max_kv_size: int | None = None

    @property
    def late(self) -> bool:
        """Whether rows on both sides of ``quantized_kv_start`` may run together."""
        return self.kv_bits is not None and self.quantized_kv_start > 0

    def __post_init__(self) -> None:
        _plain_numbers(self)
        owner = "CacheOptions"
        if self.kv_bits is not None and self.kv_bits not in KV_BITS:
            raise InvalidRequest(f"[{owner}] kv_bits={self.kv_bits!r}, expected one of {KV_BITS}")
        if self.kv_group_size not in KV_GROUP_SIZES:
            raise InvalidRequest(
                f"[{owner}] kv_group_size={self.kv_group_size!r}, expected one of {KV_GROUP_SIZES}"
            )
        _integer(owner, "quantized_kv_start", self.quantized_kv_start, 0)
        if self.max_kv_size is not None:
            _integer(owner, "max_kv_size", self.max_kv_size, KEPT_TOKENS + 1)
            if self.kv_bits is not None:
                raise InvalidRequest(
                    f"[{owner}] kv_bits={self.kv_bits} and max_kv_size={self.max_kv_size}: a cache "
                    "that forgets old tokens cannot be quantized"
                )


PLAIN_CACHES = CacheOptions()


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
        prefill_interleave: bounds the pause that newcomers' long prompts make in the streams of
            rows that decode: between two tokens of a running stream the target is fed at most this
            many prompt tokens (or one a row, where more rows are fed together), and the draft model
            at most as many.
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
    prefill_interleave: int = 512
    cache: CacheOptions = PLAIN_CACHES

    def __post_init__(self) -> None:
        _plain_numbers(self)
        owner = "BatchingConfig"
        _integer(owner, "batch_size", self.batch_size, 1)
        _number(owner, "batch_timeout", self.batch_timeout, 0.0, 3600.0, "[0, 3600]")
        for name in ("max_batch_tokens", "max_seq_len"):
            if getattr(self, name) is not None:
                _integer(owner, name, getattr(self, name), 2)
        if isinstance(self.memory_limit, float):
            _number(owner, "memory_limit", self.memory_limit, 0.0, 1.0, "(0, 1] or bytes")
        elif self.memory_limit is not None:
            _integer(owner, "memory_limit", self.memory_limit, 1)
        _integer(owner, "block_size", self.block_size, 1)
        _integer(owner, "prefix_cache_bytes", self.prefix_cache_bytes, 0)
        _number(owner, "aging", self.aging, 0.0, 1e9, "[0, 1e9]")
        _integer(owner, "prefill_step_size", self.prefill_step_size, 1)
        _integer(owner, "prefill_interleave", self.prefill_interleave, 1)
        if not isinstance(self.cache, CacheOptions):
            raise InvalidRequest(f"[{owner}] cache={self.cache!r}, expected a CacheOptions")


@dataclass(frozen=True)
class ChatConfig:
    """How prompts go through the tokenizer's chat template.

    Attributes:
        texts: a text is one message of the user. Where False, only lists of messages are
            templated and texts are fed as they are.
        system_prompt: a system message before each text; lists of messages bring their own.
        prefill_response: how the answer begins; the model goes on from there. It is part of the
            prompt and not of the output.
        chat_template_config: further keywords for the template, as mlx-lm's option of that name:
            ``{"enable_thinking": False}``.
        tools: descriptions of functions that the model may call, for templates that take them.

    Raises:
        InvalidRequest: a value of another type, or a keyword that the template is given by us.
    """

    texts: bool = True
    system_prompt: str | None = None
    prefill_response: str | None = None
    chat_template_config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tools: Seq[Any] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        for name in ("system_prompt", "prefill_response"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequest(f"[ChatConfig] {name}={value!r}, expected a text")
        config = self.chat_template_config
        if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
            raise InvalidRequest(
                f"[ChatConfig] chat_template_config={config!r}, expected keywords and values"
            )
        for name in sorted(_TEMPLATE_KEYWORDS & config.keys()):
            hint = "give tools=[...]" if name == "tools" else "that is not for a user to set"
            raise InvalidRequest(f"[ChatConfig] chat_template_config names {name!r}: {hint}")
        if isinstance(self.tools, (str, bytes)) or not isinstance(self.tools, Seq):
            raise InvalidRequest(f"[ChatConfig] tools={self.tools!r}, expected a list")

    @classmethod
    def of(cls, chat: bool | ChatConfig) -> ChatConfig:
        """What ``chat=`` of the public functions means: True or False, or a config.

        Raises:
            InvalidRequest: anything else.
        """
        if isinstance(chat, bool):
            return cls(texts=chat)
        if not isinstance(chat, cls):
            raise InvalidRequest(
                f"[ChatConfig] chat={chat!r}, expected True, False or a ChatConfig"
            )
        return chat
