"""``Flags``: all of them, and what they mean to the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from mlx_spec.config import (
    BatchingConfig,
    CacheOptions,
    ChatConfig,
    SamplingParams,
    SpeculationConfig,
)
from mlx_spec.errors import InvalidRequest
from mlx_spec.load_config import LoadConfig
from mlx_spec.pipeline.flag_values import token_id
from mlx_spec.pipeline.flags.batching import BatchingFlags
from mlx_spec.pipeline.flags.models import ModelFlags
from mlx_spec.pipeline.flags.prompts import PromptFlags
from mlx_spec.pipeline.flags.sampling import SamplingFlags
from mlx_spec.pipeline.flags.shaping import ShapingFlags
from mlx_spec.pipeline.flags.speculation import SpeculationFlags
from mlx_spec.pipeline.flags.structure import StructureFlags
from mlx_spec.pipeline.options import options_of

T = TypeVar("T")
TARGET, DRAFT = "demo", "demo-draft"
# What each of these is without: (option, in words, options that only count beside it).
_BESIDE = (
    ("temp", "--temp 0 is greedy", ("top_p", "top_k", "min_p", "xtc_probability")),
    ("kv_bits", "there is no --kv-bits", ("kv_group_size",)),
)
HEADS = {"smollm2": "smollm2-draft"}  # embedded ones, where a head is asked for and none named


# Fields come in the order of the last base to the first.
@dataclass(frozen=True)
class Flags(
    BatchingFlags,
    SpeculationFlags,
    StructureFlags,
    ShapingFlags,
    SamplingFlags,
    PromptFlags,
    ModelFlags,
):
    """What ``mlx-spec generate`` and the commands over files have in common; see ``--help``.

    Raises:
        InvalidRequest: a value outside its range.
    """

    def __post_init__(self) -> None:
        for name in ("model", "draft_model", "adapter_path"):
            value = getattr(self, name)
            if value is not None and not value.strip():  # a variable of a script that is not set
                raise InvalidRequest(f"[flags] --{name.replace('_', '-')} is empty")
        self.read_structure()
        # The option objects check their own ranges; a mistake must not wait for the models.
        for checked in (self.sampling, self.speculation, self.batches, self._chat, self.loading):
            assert checked is not None
        if "model" in self.speculation.kinds(None) and self.drafter is None:
            raise InvalidRequest(f"[flags] --draft {self.draft} needs a --draft-model")

    @cached_property
    def target(self) -> str:
        """The model to load."""
        return self.model or TARGET

    @cached_property
    def drafter(self) -> str | None:
        """The draft model to load, if any."""
        if not self.speculation.takes_model:
            return None
        if self.draft_model is not None:
            return self.draft_model
        named = self.speculation.named
        if "head" in named and "model" not in named:
            return HEADS.get(self.target)
        return DRAFT if self.model is None else None

    @cached_property
    def head_of(self) -> str | None:
        """What has the head that is to draft: a head itself, or a checkpoint that brings one."""
        named = self.speculation.named
        if self.speculation.off or "head" not in named or "model" in named:
            return None
        return self.drafter or self.target

    @cached_property
    def unused(self) -> str | None:
        """What is given and not used, in a line."""
        return "; ".join([*self._unused_drafting(), *self._unused_beside()]) or None

    def _unused_drafting(self) -> Iterator[str]:
        if self.speculation.off:
            off = "--no-speculative" if self.speculation.enabled is False else "a draft of 0 tokens"
            if self.draft:
                yield f"--draft {self.draft} is not used: {off}"
        elif self.draft_model is not None and not self.speculation.takes_model:
            yield f"--draft-model {self.draft_model} is not used: --draft {self.draft}"

    def _unused_beside(self) -> Iterator[str]:
        """Of options that only count beside another one."""
        options = options_of(Flags)
        for needed, why, names in _BESIDE:
            given = [name for name in names if getattr(self, name) != options[name].default]
            if given and not getattr(self, needed):
                said = " and ".join(f"{options[name].flag} {getattr(self, name)}" for name in given)
                yield f"{said} {'is' if len(given) == 1 else 'are'} not used: {why}"

    @cached_property
    def drafting(self) -> bool:
        """Whether anything is to be drafted."""
        return bool(self.speculation.kinds(None if self.drafter is None else "model"))

    @cached_property
    def loading(self) -> LoadConfig:
        """How the model is loaded."""
        return self._made(LoadConfig)

    @cached_property
    def draft_loading(self) -> LoadConfig:
        """How the draft model is loaded: what is the target's own left out."""
        return replace(
            self.loading,
            adapter_path=None,
            revision=None,
            quantize=None,
            config_overrides={},
            shard=None,
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
        return replace(self._made(SamplingParams), structure=self.structure)

    def sampling_for(self, tokenizer: Any) -> SamplingParams:
        """Sampling options with the ids of ``--extra-eos-token``.

        Raises:
            InvalidRequest: one of them is no token.
        """
        if not self.extra_eos_token:
            return self.sampling
        vocabulary = tokenizer.get_vocab()
        ids = [token_id(token, vocabulary) for token in self.extra_eos_token]
        return replace(self.sampling, stop_token_ids=(*self.sampling.stop_ids, *ids))

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
