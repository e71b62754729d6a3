"""The options that every command and every stage of a pipeline takes, under the flags' names.

One flat record, made from the command line or from a config's table, and turned here and only
here into the engine's option objects. No mlx; may be imported by all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from mlx_spec.config import BatchingConfig, ChatConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import InvalidRequest

TARGET, DRAFT = "demo", "demo-draft"
# Prompts of one run nearly always begin alike: a template, a system prompt.
PREFIX_CACHE_BYTES = 2**28
# Seconds; they come one by one, from a file or a pipe, and most are there within this.
ACCUMULATION = 0.1
# What may differ between a run and its continuation: exactness makes the text the same.
_FREE = {
    "adaptive",
    "batch_size",
    "batch_timeout",
    "batching",
    "draft_model",
    "enable_speculative",
    "kernels",
    "memory_limit",
    "num_draft_tokens",
    "prefill_step_size",
    "prefix_cache_bytes",
    "seed",  # kept by the checkpoint on its own
}


@dataclass(frozen=True)
class Flags:
    """What ``mlx-spec generate`` and ``mlx-spec batch`` have in common; see their ``--help``.

    Raises:
        InvalidRequest: a value outside its range.
    """

    model: str | None = None
    draft_model: str | None = None
    adapter_path: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    system_prompt: str | None = None
    prefill_response: str | None = None
    ignore_chat_template: bool = False
    chat_template_config: str | None = None
    extra_eos_token: tuple[str, ...] = ()
    max_tokens: int = SamplingParams.max_tokens
    temp: float = SamplingParams.temperature
    top_p: float = SamplingParams.top_p
    top_k: int = SamplingParams.top_k
    min_p: float = SamplingParams.min_p
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    enable_speculative: bool | None = None
    num_draft_tokens: int = SpeculationConfig.num_draft_tokens
    adaptive: bool = True
    batch_size: int = BatchingConfig.batch_size
    batch_timeout: float = ACCUMULATION
    batching: bool = True
    prefill_step_size: int = BatchingConfig.prefill_step_size
    memory_limit: float | None = None
    prefix_cache_bytes: int = PREFIX_CACHE_BYTES
    kernels: str = "auto"
    unordered: bool = False

    def __post_init__(self) -> None:
        # The option objects check their own ranges; a mistake must not wait for the models.
        for checked in (self.sampling, self.speculation, self.batches, self._chat):
            assert checked is not None
        if self.enable_speculative and self.model is not None and self.draft_model is None:
            raise InvalidRequest("[flags] --enable-speculative needs a --draft-model")

    @cached_property
    def target(self) -> str:
        """The model to load."""
        return self.model or TARGET

    @cached_property
    def drafter(self) -> str | None:
        """The draft model to load, if any."""
        if self.enable_speculative is False:
            return None
        return self.draft_model or (DRAFT if self.model is None else None)

    @cached_property
    def sampling(self) -> SamplingParams:
        """Sampling options, the seed as given."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temp,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
        )

    def sampling_for(self, tokenizer: Any) -> SamplingParams:
        """Sampling options with the ids of ``--extra-eos-token``.

        Raises:
            InvalidRequest: one of them is no token.
        """
        if not self.extra_eos_token:
            return self.sampling
        vocabulary = tokenizer.get_vocab()
        ids = [_token_id(token, vocabulary) for token in self.extra_eos_token]
        return replace(self.sampling, stop_token_ids=tuple(ids))

    def chat(self, tokenizer: Any) -> ChatConfig:
        """How prompts are templated: texts too, where there is a template and it is wanted."""
        templated = bool(tokenizer.has_chat_template) and not self.ignore_chat_template
        return replace(self._chat, texts=templated)

    @cached_property
    def _chat(self) -> ChatConfig:
        return ChatConfig(
            system_prompt=self.system_prompt,
            prefill_response=self.prefill_response,
            chat_template_config=_json_object(self.chat_template_config),
        )

    @cached_property
    def speculation(self) -> SpeculationConfig:
        """How far to guess."""
        return SpeculationConfig(num_draft_tokens=self.num_draft_tokens, adaptive=self.adaptive)

    @cached_property
    def batches(self) -> BatchingConfig:
        """Rows that run together."""
        config = BatchingConfig(
            batch_size=self.batch_size,
            batch_timeout=self.batch_timeout,
            prefill_step_size=self.prefill_step_size,
            memory_limit=_bytes_or_share(self.memory_limit),
            prefix_cache_bytes=self.prefix_cache_bytes,
        )
        return config if self.batching else replace(config, batch_size=1)

    @property
    def look_ahead(self) -> int:
        """Most records under way: enough to keep the rows full while the first one is slow."""
        return 4 * self.batches.batch_size

    def identity(self) -> dict[str, Any]:
        """The options that decide the text, for a resume to compare."""
        options = {name: value for name, value in asdict(self).items() if name not in _FREE}
        return options | {"model": self.target}


def _bytes_or_share(limit: float | None) -> int | float | None:
    """A number above 1 is meant in bytes."""
    return limit if limit is None or limit <= 1 else int(limit)


def _json_object(text: str | None) -> dict[str, Any]:
    """The keywords of a template, from the command line."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(
            f"[flags] --chat-template-config {text!r} is not JSON ({error}); "
            """expected an object, such as '{"enable_thinking": false}'"""
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"[flags] --chat-template-config {text!r}, expected an object, such as "
            """'{"enable_thinking": false}'"""
        )
    return value


def _token_id(token: str, vocabulary: dict[str, int]) -> int:
    """The id of a token given by its number, as for mlx-lm, or as text."""
    if token.isascii() and token.isdigit() and int(token) in vocabulary.values():
        return int(token)
    if token in vocabulary:
        return vocabulary[token]
    raise InvalidRequest(f"[flags] --extra-eos-token {token!r} is no token of this model")
