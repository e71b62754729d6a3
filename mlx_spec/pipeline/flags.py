"""The options that every command and every stage of a pipeline takes, each written once.

One flat record under the flags' names, made from the command line or from a config's table, and
turned here and only here into the engine's option objects: whose defaults and checks are theirs,
and are not repeated. No mlx.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from mlx_spec.config import (
    BatchingConfig,
    CacheOptions,
    ChatConfig,
    SamplingParams,
    SpeculationConfig,
)
from mlx_spec.errors import InvalidRequest
from mlx_spec.load_config import LoadConfig, WeightQuantization, parse_overrides
from mlx_spec.pipeline.flag_values import json_object, memory_size, token_id
from mlx_spec.pipeline.options import option, options_of

T = TypeVar("T")
TARGET, DRAFT = "demo", "demo-draft"
# Prompts of one run nearly always begin alike: a template, a system prompt.
PREFIX_CACHE_BYTES = 2**28
# As of mlx-lm's command: shorter texts stay as they are.
QUANTIZED_KV_START = 5000
# Seconds; they come one by one, from a file or a pipe, and most are there within this.
ACCUMULATION = 0.1


def _setting(config: type[Any], group: str, *, changes_text: bool = True) -> Callable[..., Any]:
    """Makes options that set fields of an engine's option object, whose defaults are the same."""

    known = {item.name for item in fields(config)}

    def make(name: str, help: str, *names: str, **about: Any) -> Any:
        assert name in known, f"{config.__name__} has no field {name}"
        default = about.pop("default", getattr(config, name, None))
        about = {"group": group, "sets": (config, name), "changes_text": changes_text, **about}
        return option(default, help, *names, **about)

    return make


_model = partial(option, group="Models")
_loading = _setting(LoadConfig, "Models")
_prompt = partial(option, group="Prompts")
_chat = _setting(ChatConfig, "Prompts")
_sampling = _setting(SamplingParams, "Sampling")
_speculation = _setting(SpeculationConfig, "Speculation", changes_text=False)
_batching = _setting(BatchingConfig, "Batching and memory", changes_text=False)
_cache = _setting(CacheOptions, "Batching and memory")


def _is_dotted(text: str) -> bool:
    return text.startswith(".")


@dataclass(frozen=True)
class Flags:
    """What ``mlx-spec generate`` and the commands over files have in common; see ``--help``.

    Raises:
        InvalidRequest: a value outside its range.
    """

    model: str | None = _model(
        None,
        "Folder, .gguf file, hub id (org/name, org/name:Q4_K_M), smollm2 or demo. Without it the "
        "embedded pair is used.",
        is_path=_is_dotted,
    )
    draft_model: str | None = _model(
        None,
        "Smaller model that guesses ahead; same tokenizer.",
        is_path=_is_dotted,
        changes_text=False,
    )
    adapter_path: str | None = _loading(
        "adapter_path", "Folder of LoRA adapters.", metavar="<path>", is_path=bool
    )
    revision: str | None = _loading(
        "revision", "Branch, tag or commit of the model's hub repository.", metavar="NAME"
    )
    dtype: str | None = _loading(
        "dtype",
        "float32, float16 or bfloat16. Default: as stored; float32 on the CPU, where float32 makes "
        "quantized weights plain, and fast.",
    )
    quantize: str | None = _loading(
        "quantize",
        "Quantize the model's plain weights on loading: bits (4), bits:group size (4:32), mxfp4, "
        "mxfp8 or nvfp4.",
        metavar="BITS",
        parse=WeightQuantization.of,
    )
    set: tuple[str, ...] = _loading(
        "config_overrides",
        "Replace an entry of the model's config.json: rope_theta=1e6, rope_scaling.factor=4; "
        "repeatable.",
        default=(),
        metavar="KEY=VALUE",
        parse=parse_overrides,
    )
    gguf_requantize: str = _loading(
        "gguf_requantize",
        "What weights of a .gguf become that MLX has no kind for: auto, 8bit, 4bit or float16.",
        metavar="WHAT",
    )
    trust_remote_code: bool = _loading(
        "trust_remote_code", "Run Python code that the model brings."
    )
    system_prompt: str | None = _chat("system_prompt", "For the chat template.")
    prefill_response: str | None = _chat(
        "prefill_response", "How the answer begins; the model goes on.", metavar="TEXT"
    )
    ignore_chat_template: bool = _prompt(False, "Feed the prompts as they are.")
    chat_template_config: str | None = _chat(
        "chat_template_config",
        """Keywords for the chat template: '{"enable_thinking": false}'.""",
        metavar="JSON",
        parse=json_object,
    )
    max_tokens: int = _sampling("max_tokens", "Most tokens to generate, each prompt.", "-m")
    temp: float = _sampling("temperature", "Temperature; 0 is greedy.", "--temperature")
    top_p: float = _sampling("top_p", "Nucleus, in (0, 1].")
    top_k: int = _sampling("top_k", "Most tokens to keep; 0 keeps all.")
    min_p: float = _sampling("min_p", "Least share of the best token's.")
    seed: int | None = _sampling(
        "seed",
        "Same seed, same text, in any batch.",
        changes_text=False,  # the checkpoint keeps the run's own
    )
    stop: tuple[str, ...] = _sampling("stop", "Text that ends it; repeatable.", metavar="TEXT")
    ignore_eos: bool = _sampling("ignore_eos", "Go on past end-of-sequence tokens.")
    extra_eos_token: tuple[str, ...] = option(
        (), "One more token that ends it; repeatable.", group="Sampling", metavar="TOKEN"
    )
    enable_speculative: bool | None = option(
        None,
        "Guess ahead with the draft model, which implies it.",
        group="Speculation",
        off="--no-speculative",
        changes_text=False,
    )
    num_draft_tokens: int = _speculation(
        "num_draft_tokens", "Draft length; the maximum when adaptive."
    )
    adaptive: bool = _speculation(
        "adaptive",
        "Choose the draft length step by step, by measured cost and acceptance.",
        off="--no-adaptive",
    )
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
        "Metal kernels of our own: auto (those measured to win here), metal (all) or reference "
        "(none).",
        metavar="WHICH",
        changes_text=False,
    )
    unordered: bool = option(False, "Write results as they come, not in the input's order.")

    def __post_init__(self) -> None:
        # The option objects check their own ranges; a mistake must not wait for the models.
        for checked in (self.sampling, self.speculation, self.batches, self._chat, self.loading):
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
    def loading(self) -> LoadConfig:
        """How the model is loaded."""
        return self._made(LoadConfig)

    @cached_property
    def draft_loading(self) -> LoadConfig:
        """How the draft model is loaded: what is the target's own left out."""
        return replace(
            self.loading, adapter_path=None, revision=None, quantize=None, config_overrides={}
        )

    def _made(self, config: type[T]) -> T:
        """The engine's option object from what is set here."""
        values = {
            one.sets[1]: value if one.parse is None else one.parse(value)
            for name, one in options_of(Flags).items()
            if one.sets is not None and one.sets[0] is config
            if (value := getattr(self, name)) is not None
        }
        return config(**values)

    @cached_property
    def sampling(self) -> SamplingParams:
        """Sampling options, the seed as given."""
        return self._made(SamplingParams)

    def sampling_for(self, tokenizer: Any) -> SamplingParams:
        """Sampling options with the ids of ``--extra-eos-token``.

        Raises:
            InvalidRequest: one of them is no token.
        """
        if not self.extra_eos_token:
            return self.sampling
        vocabulary = tokenizer.get_vocab()
        ids = [token_id(token, vocabulary) for token in self.extra_eos_token]
        return replace(self.sampling, stop_token_ids=tuple(ids))

    def chat(self, tokenizer: Any) -> ChatConfig:
        """How prompts are templated: texts too, where there is a template and it is wanted."""
        templated = bool(tokenizer.has_chat_template) and not self.ignore_chat_template
        return replace(self._chat, texts=templated)

    @cached_property
    def _chat(self) -> ChatConfig:
        return self._made(ChatConfig)

    @cached_property
    def speculation(self) -> SpeculationConfig:
        """How far to guess."""
        return self._made(SpeculationConfig)

    @cached_property
    def batches(self) -> BatchingConfig:
        """Rows that run together."""
        config = replace(self._made(BatchingConfig), cache=self._made(CacheOptions))
        return config if self.batching else replace(config, batch_size=1)

    @property
    def look_ahead(self) -> int:
        """Most records under way: enough to keep the rows full while the first one is slow."""
        return 4 * self.batches.batch_size

    def identity(self) -> dict[str, Any]:
        """The options that decide the text, for a resume to compare."""
        options = options_of(Flags)
        kept = {name: value for name, value in asdict(self).items() if options[name].changes_text}
        return kept | {"model": self.target}
