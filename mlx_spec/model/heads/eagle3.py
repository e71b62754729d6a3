"""Published EAGLE-3 heads: a Llama-like layer over [embedding, state], of three layers' states.

Their layout (github.com/SafeAILab/EAGLE; arXiv:2503.01840), of which all tensors are read::

    three layers of the target - fc ----------+   only for positions that the target has read;
                                              |   behind them the layer's own output is the state
    token p+1 - embed_tokens - input norm -+  |
                                           +- attention of both - MLP - norm - lm_head of the
    state p ------------------ hidden norm +                |             tokens in ``d2t``
                                                        next state

``d2t[i]`` is what must be added to i to make a token of the target. ``embed_tokens`` is the
target's where a checkpoint has none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.llama import MLP, Attention, ModelArgs

from mlx_spec.cache.layout import full_attention_cache
from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.model.heads.head import Choices
from mlx_spec.model.heads.parts import Output, TargetParts
from mlx_spec.model.hidden import HiddenLayers

Weights = dict[str, mx.array]
# Tables beside the weights; the other way round is not needed.
_FROM_DRAFT, _TO_DRAFT = "d2t", "t2d"


@dataclass(frozen=True)
class Eagle3Config:
    """What is read of such a head's config.json.

    Attributes:
        target_hidden_size: of the target; None: as its own.
        draft_vocab_size: tokens that it can guess; None for all.
        norm_before_residual: whether what goes round attention is normed.
        eagle_aux_hidden_state_layer_ids: layers before which hidden states are taken; None: the
            third, the middle one, and the third from the end.
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
    eagle_aux_hidden_state_layer_ids: tuple[int, ...] | None = None

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Eagle3Config:
        """Of the entries of a config.json."""
        nested = settings.get("eagle_config") or {}
        known = {item.name for item in fields(cls)}
        entries = {k: v for k, v in {**settings, **nested}.items() if k in known}
        ids = entries.get("eagle_aux_hidden_state_layer_ids")
        if ids is not None:
            entries["eagle_aux_hidden_state_layer_ids"] = tuple(ids)
        return cls(**entries)

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

    def reads(self, layers: int) -> HiddenLayers:
        """What goes into three layers is what those before them gave."""
        before = self.config.eagle_aux_hidden_state_layer_ids or (2, layers // 2, layers - 3)
        return HiddenLayers(final=False, layers=tuple(place - 1 for place in before))

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
        """Take the tensors of a checkpoint."""
        weights = dict(weights)
        weights.pop(_TO_DRAFT, None)
        table = weights.pop(_FROM_DRAFT, None)
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
            f"[load_head] {folder}: an EAGLE-3 head without a *.safetensors file; convert what it "
            "has (pytorch_model.bin) to that"
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
