"""Published EAGLE-3 heads: a Llama-like layer over [embedding, state], of three layers' states.

Their layout (github.com/SafeAILab/EAGLE; arXiv:2503.01840), of which all tensors are read::

    three layers of the target - fc ----------+   only for positions that the target has read;
                                              |   behind them the layer's own output is the state
    token p+1 - embed_tokens - input norm -+  |
                                           +- attention of both - MLP - norm - lm_head of the
    state p ------------------ hidden norm +                |             tokens in ``d2t``
                                                        next state

``d2t[i]`` is what must be added to i to make a token of the target. ``embed_tokens`` is the
target's where a checkpoint has none. Two ways of writing config.json are known: EAGLE's own
(``LlamaForCausalLMEagle3``, ``midlayer.``), and that of vLLM's speculators (``Eagle3Speculator``,
``layers.0.``), which has the layer's settings under ``transformer_layer_config``. They count layers
differently: ``eagle_config`` names those whose output is read, the other those that read it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.llama import MLP, Attention, ModelArgs

from mlx_spec.cache.layout import full_attention_cache
from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.model.heads.head import Choices
from mlx_spec.model.heads.parts import Output, TargetParts
from mlx_spec.model.hidden import HiddenLayers
from mlx_spec.model.rotation import old_form

Weights = dict[str, mx.array]
# Tables beside the weights; the other way round is not needed.
_FROM_DRAFT, _TO_DRAFT = "d2t", "t2d"
_READ = "eagle_aux_hidden_state_layer_ids"


@dataclass(frozen=True)
class Eagle3Config:
    """What is read of such a head's config.json.

    Attributes:
        target_hidden_size: of the target; None: as its own.
        draft_vocab_size: tokens that it can guess; None for all.
        norm_before_residual: whether what goes round attention is normed.
        read: layers of the target whose output is read; None: the second, the one before the
            middle, and the fourth from the end.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    target_hidden_size: int | None = None
    draft_vocab_size: int | None = None
    norm_before_residual: bool = False
    read: tuple[int, ...] | None = None

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Eagle3Config:
        """Of the entries of a config.json.

        Raises:
            ModelLoadError: some are missing.
        """
        own = settings.get("eagle_config") or {}
        layer = settings.get("transformer_layer_config") or {}
        entries = {**layer, **settings, **own}
        entries |= old_form(entries)
        known = {item.name for item in fields(cls)} - {"read"}
        needed = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        lacking = [name for name in needed if name not in entries]
        if lacking:
            raise ModelLoadError(f"its config.json does not say {', '.join(lacking)}")
        read = own.get(_READ)
        if read is None and settings.get(_READ) is not None:
            read = [place - 1 for place in settings[_READ]]
        return cls(
            **{key: value for key, value in entries.items() if key in known},
            read=None if read is None else tuple(read),
        )

    @property
    def layer(self) -> ModelArgs:
        """The same in mlx-lm's words."""
        return ModelArgs(
            model_type="llama",
            hidden_size=self.hidden_size,
            num_hidden_layers=1,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            max_position_embeddings=self.max_position_embeddings,
            attention_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
            vocab_size=self.vocab_size,
        )


class Eagle3Layer(nn.Module):  # type: ignore[misc]
    """The one layer: attention reads embedding and state side by side."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        args, width = config.layer, config.hidden_size
        self.self_attn = Attention(args)
        for name in ("q_proj", "k_proj", "v_proj"):
            out = self.self_attn[name].weight.shape[0]
            self.self_attn[name] = nn.Linear(2 * width, out, bias=config.attention_bias)
        self.mlp = MLP(args)
        self.input_layernorm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.hidden_norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self._normed_around = config.norm_before_residual

    def __call__(self, embeddings: mx.array, states: mx.array, mask: Any, cache: Any) -> mx.array:
        """[B, N, D] of both."""
        normed = self.hidden_norm(states)
        both = mx.concatenate([self.input_layernorm(embeddings), normed], axis=-1)
        around = normed if self._normed_around else states
        between = around + self.self_attn(both, mask, cache)
        out: mx.array = between + self.mlp(self.post_attention_layernorm(between))
        return out


class Eagle3Head(nn.Module):  # type: ignore[misc]
    """Such a head.

    Args:
        config: its shape.
        own_embedding: whether it brings one.
    """

    draft_kind = "head"
    chained = True
    window: int | None = None

    def __init__(self, config: Eagle3Config, *, own_embedding: bool) -> None:
        super().__init__()
        width, seen = config.hidden_size, config.target_hidden_size or config.hidden_size
        tokens = config.draft_vocab_size or config.vocab_size
        self.config = config
        self.fc = nn.Linear(3 * seen, width, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(width, tokens, bias=False)
        if own_embedding:
            self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self._tokens: mx.array | None = None

    @property
    def stages(self) -> Seq[Eagle3Head]:
        """Itself alone."""
        return (self,)

    def reads(self, layers: int) -> HiddenLayers:
        """What three layers gave.

        Raises:
            UnsupportedModel: the target has not so many.
        """
        read = self.config.read or (1, layers // 2 - 1, layers - 4)
        if len(read) != 3 or min(read) < 0 or max(read) >= layers:
            raise UnsupportedModel(
                f"[Eagle3Head] it reads layers {', '.join(map(str, read))} of a target; this one "
                f"has {layers}, from 0 on"
            )
        return HiddenLayers(final=False, layers=tuple(read))

    def check(self, parts: TargetParts) -> None:
        """Hidden size and vocabulary must be the target's."""
        config = self.config
        seen = config.target_hidden_size or config.hidden_size
        if "embed_tokens" not in self and config.hidden_size != parts.width:
            seen = config.hidden_size  # it would read the target's embeddings
        if (seen, config.vocab_size) != (parts.width, parts.vocabulary):
            raise UnsupportedModel(
                f"[Eagle3Head] made for a target of hidden size {seen} and {config.vocab_size} "
                f"tokens; this one has {parts.width} and {parts.vocabulary}"
            )

    def embed(self, parts: TargetParts, tokens: mx.array) -> mx.array:
        """Its own, or the target's."""
        if "embed_tokens" not in self:
            return parts.embed(tokens)
        embedded: mx.array = self.embed_tokens(tokens)
        return embedded

    def begin(self, hidden: mx.array) -> mx.array:
        """Three layers' states as one."""
        states: mx.array = self.fc(hidden)
        return states

    def own_cache(self) -> Any:
        """Full attention."""
        return full_attention_cache()

    def __call__(
        self, embeddings: mx.array, states: mx.array, mask: Any = None, cache: Any = None
    ) -> mx.array:
        """States [B, N, D] one position on, before their norm."""
        out: mx.array = self.midlayer(embeddings, states, mask, cache)
        return out

    def choices(self, parts: TargetParts) -> Choices:
        """By its own output head."""
        return Output(self.lm_head, self._tokens, self.norm)

    def load(self, weights: Weights) -> None:
        """Take the tensors of a checkpoint.

        Raises:
            ModelLoadError: they are others than this layout has, by names and shapes.
        """
        weights = {name: value for name, value in weights.items() if "rotary_emb" not in name}
        weights.pop(_TO_DRAFT, None)
        table = weights.pop(_FROM_DRAFT, None)
        config = self.config
        tokens = config.draft_vocab_size or config.vocab_size
        own = {name: value.shape for name, value in tree_flatten(self.parameters())}
        wrong = [f"{name!r} is not known" for name in sorted(weights.keys() - own.keys())]
        wrong += [f"{name!r} is missing" for name in sorted(own.keys() - weights.keys())]
        for name in sorted(weights.keys() & own.keys()):
            if weights[name].shape != own[name]:
                wrong.append(f"{name!r} is {weights[name].shape}, not {own[name]}")
        if table is None and tokens != config.vocab_size:
            wrong.append(f"{_FROM_DRAFT!r} is missing, for {tokens} of {config.vocab_size} tokens")
        if wrong:
            raise ModelLoadError(
                f"not laid out as EAGLE-3's heads are: {'; '.join(wrong[:3])}"
                + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            )
        self.load_weights(list(weights.items()))
        if table is not None:
            self._tokens = table.astype(mx.int32) + mx.arange(len(table), dtype=mx.int32)


def is_eagle3(settings: dict[str, Any]) -> bool:
    """Whether a config.json is of such a head."""
    return any("Eagle3" in name for name in settings.get("architectures") or ())


def load_eagle3(folder: Path, settings: dict[str, Any]) -> Eagle3Head:
    """Read such a head.

    Raises:
        ModelLoadError: other tensors than the layout has, or no safetensors file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelLoadError(
            "an EAGLE-3 head without a *.safetensors file; convert what it has (pytorch_model.bin) "
            "to that"
        )
    weights: Weights = {}
    for file in files:
        tensors: Any = mx.load(str(file))
        weights.update({_renamed(name): value for name, value in tensors.items()})
    head = Eagle3Head(Eagle3Config.of(settings), own_embedding="embed_tokens.weight" in weights)
    head.load(weights)
    return head


def _renamed(name: str) -> str:
    """Some say ``layers.0`` for its one layer, and ``model.`` before all."""
    return name.removeprefix("model.").replace("layers.0.", "midlayer.", 1)
