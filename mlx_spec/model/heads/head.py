"""A draft head: one decoder layer that reads the target's hidden states, in the manner of EAGLE.

At position p it reads [embedding of token p + 1, hidden state of the target at p] and guesses what
the hidden state at p + 1 will be, hence token p + 2. Embedding and output head are the target's
own; of the latter only the rows of frequent tokens may be used, so that a guess is cheap::

    token p+1 - embedding --+
                            +- join - decoder layer - norm -+- the head's rows: token p+2
    hidden p ---------------+                               +- stands in for hidden p+1

Its source: Li et al., EAGLE (arXiv:2401.15077), EAGLE-3 (arXiv:2503.01840).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.llama import ModelArgs, TransformerBlock

from mlx_spec.cache.layout import full_attention_cache
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.heads.mark import other_target
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.model.hidden import HiddenLayers

MODEL_TYPE = "mlx_spec_head"


class Heads(Protocol):
    """What drafts from hidden states: our own kind, and those that checkpoints bring.

    A *state* [B, N, D] is what a head reads beside embeddings and what it gives: of the target's
    hidden states (:meth:`begin`) it makes the first ones, of its own the next.

    Attributes:
        chained: whether a stage reads the states of the one before it; else all read the target's.
    """

    chained: bool

    @property
    def stages(self) -> Seq[Head]:
        """The heads that guess one after the other, each one token further than the one before it;
        most are one alone. Behind the last one that guesses on."""
        ...

    def reads(self, layers: int) -> HiddenLayers:
        """The hidden states that it wants of a target of so many layers."""
        ...

    def check(self, parts: TargetParts) -> None:
        """Whether it fits a target.

        Raises:
            UnsupportedModel: it does not, with the numbers.
        """
        ...

    def begin(self, hidden: mx.array) -> mx.array:
        """States of the target's hidden states [B, N, S * D]."""
        ...


class Head(Heads, Protocol):
    """One head.

    Attributes:
        window: positions that its layer looks back, its own among them; None for all.
    """

    window: int | None

    def embed(self, parts: TargetParts, tokens: mx.array) -> mx.array:
        """[B, N, E] of token ids [B, N]."""
        ...

    def __call__(
        self, embeddings: mx.array, states: mx.array, mask: Any = None, cache: Any = None
    ) -> mx.array:
        """States [B, N, D] one position on, of embeddings [B, N, E] and states."""
        ...

    def choices(self, parts: TargetParts) -> Choices:
        """What makes logits of its states."""
        ...

    def own_cache(self) -> Any:
        """The cache of mlx-lm's that its layer wants for one text."""
        ...


class Choices(Protocol):
    """Logits of states.

    Attributes:
        tokens: [V'] int32, ascending: the target's ids of the logits' places; None: their own.
    """

    tokens: mx.array | None

    def __call__(self, states: mx.array) -> mx.array:
        """Logits [B, N, V']."""
        ...


@dataclass(frozen=True)
class HeadConfig:
    """Shape of a head of our own kind; the words of config.json.

    Attributes:
        hidden_size: of the target, and of the head.
        vocab_size: of the target's logits.
        draft_vocab_size: tokens that the head can guess; 0 for all.
        input_norms: whether embeddings and hidden states are normed before they are joined.
        target: the mark of the target that it was made for; None where that is not known.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int = 0
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    input_norms: bool = False
    target: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {"model_type": MODEL_TYPE, **known}


class LastStateHead(nn.Module):  # type: ignore[misc]
    """A head that reads what the target's output head reads, beside the target's embeddings."""

    draft_kind = "head"
    chained = True
    window: int | None = None

    @property
    def stages(self) -> Seq[Head]:
        """Itself alone."""
        return (self,)

    def reads(self, layers: int) -> HiddenLayers:
        """What the output head reads."""
        return HiddenLayers()

    def embed(self, parts: TargetParts, tokens: mx.array) -> mx.array:
        """The target's own."""
        return parts.embed(tokens)

    def begin(self, hidden: mx.array) -> mx.array:
        """The target's own as they are."""
        return hidden


class DraftHead(LastStateHead):
    """A head of our own kind, with weights of its own and the target's embedding and output head.

    Args:
        config: its shape.

    Attributes:
        tokens: [draft_vocab_size] int32, ids of the tokens that it can guess, ascending.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.rms_norm_eps
        if config.input_norms:
            self.embedding_norm = nn.RMSNorm(width, eps=eps)
            self.hidden_norm = nn.RMSNorm(width, eps=eps)
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.layer = TransformerBlock(
            ModelArgs(
                model_type="llama",
                hidden_size=width,
                num_hidden_layers=1,
                intermediate_size=config.intermediate_size,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                rms_norm_eps=eps,
                rope_theta=config.rope_theta,
                vocab_size=config.vocab_size,
            )
        )
        self.norm = nn.RMSNorm(width, eps=eps)
        if config.draft_vocab_size:
            self.tokens = mx.arange(config.draft_vocab_size, dtype=mx.int32)
            self.freeze(keys="tokens", recurse=False)

    def join(self, embeddings: mx.array, states: mx.array) -> mx.array:
        """[B, N, D] that the layer reads."""
        if self.config.input_norms:
            embeddings, states = self.embedding_norm(embeddings), self.hidden_norm(states)
        joined: mx.array = self.fc(mx.concatenate([embeddings, states], axis=-1))
        return joined

    def __call__(
        self, embeddings: mx.array, states: mx.array, mask: Any = None, cache: Any = None
    ) -> mx.array:
        """The hidden states [B, N, D] that it expects next, after their norm."""
        expected: mx.array = self.norm(self.layer(self.join(embeddings, states), mask, cache))
        return expected

    def check(self, parts: TargetParts) -> None:
        """Hidden size and vocabulary must be the target's.

        Warns:
            RuntimeWarning: it was made for another target of that size.
        """
        asked = (self.config.hidden_size, self.config.vocab_size)
        if asked != (parts.width, parts.vocabulary):
            raise UnsupportedModel(
                f"[DraftHead] made for a target of hidden size {asked[0]} and {asked[1]} tokens; "
                f"this one has {parts.width} and {parts.vocabulary}"
            )
        other = other_target(self.config.target, parts)
        if other is not None:
            warnings.warn(
                f"the draft head was made for another target ({other}): few of its guesses will be "
                "right; texts are the same all the same",
                RuntimeWarning,
                stacklevel=2,
            )

    def own_cache(self) -> Any:
        """Full attention."""
        return full_attention_cache()

    def choices(self, parts: TargetParts) -> Choices:
        """By the target's own output head, or its rows of the tokens that it can guess."""
        return parts.output(self.tokens if self.config.draft_vocab_size else None)
