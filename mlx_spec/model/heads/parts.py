"""What a head shares with its target: the embedding, the output head or some rows of it, and what
follows that.

Both are found as the model itself uses them, by what it calls: no family is known by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.cache.layout import model_name
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.heads.last_word import LastWord, last_word
from mlx_spec.model.hidden import HiddenLayers, bind_hidden, described, noting
from mlx_spec.model.ranks import whole_layers


class TargetParts:
    """The parts of a model that its heads share.

    Args:
        model: any model of mlx-lm.

    Attributes:
        width, dtype: of its hidden states, as its output head reads them.
        vocabulary: of its logits.
        name, layers: its kind, and how many layers it has.
        last: what it does to the logits of its output head; None where that is nothing.

    Raises:
        UnsupportedModel: they cannot be found.
    """

    def __init__(self, model: Any) -> None:
        self.name, self.layers = model_name(model), whole_layers(model)
        bind_hidden(model, HiddenLayers())
        with noting(HiddenLayers()) as notes:
            self.vocabulary: int = described(model).shape[-1]
        if not notes.embeddings:
            raise UnsupportedModel(
                f"[TargetParts] this {model_name(model)!r} model embeds tokens in a way that a "
                "head cannot share"
            )
        self._embedding, self._head = notes.embeddings[0], notes.head
        state = notes.take()
        self.width: int = state.shape[-1]
        self.dtype = state.dtype
        self.last: LastWord | None = last_word(model, self.vocabulary)

    def embed(self, tokens: mx.array) -> mx.array:
        """[.., E] of token ids [..], as the embedding gives them."""
        embedded: mx.array = self._embedding(tokens)
        return embedded

    def rows(self, tokens: mx.array) -> mx.array:
        """[V', D], rows of the output head for token ids [V'], as plain numbers."""
        return plain_rows(self._head, tokens)

    def output(
        self, tokens: mx.array | None = None, behind: Callable[..., mx.array] | None = None
    ) -> Output:
        """The output head, or its rows of some tokens only; ``behind`` a norm of the caller's."""
        if tokens is None:
            return Output(self._head, norm=behind, last=self.last)
        return Output(_linear(self.rows(tokens), self._head, tokens), tokens, behind, self.last)


class Output:
    """Logits of states by an output head.

    Args:
        head: a linear layer, or an embedding that serves as one.
        tokens: [V'] int32, what its rows stand for; None for all tokens in their order.
        norm: what states go through before.
        last: what logits go through behind it.
    """

    def __init__(
        self,
        head: Any,
        tokens: mx.array | None = None,
        norm: Callable[..., mx.array] | None = None,
        last: LastWord | None = None,
    ) -> None:
        self.tokens, self._norm, self._last = tokens, norm, last
        self._logits = getattr(head, "as_linear", head)

    def __call__(self, states: mx.array) -> mx.array:
        """Logits [B, N, V']."""
        logits: mx.array = self._logits(states if self._norm is None else self._norm(states))
        return logits if self._last is None else self._last(logits)


def plain_rows(module: Any, tokens: mx.array) -> mx.array:
    """Rows [n, D] of a module's weights, dequantized where they are not plain."""
    rows: mx.array = module.weight[tokens]
    if "scales" not in module:
        return rows
    biases = module.get("biases")
    return mx.dequantize(
        rows,
        module.scales[tokens],
        None if biases is None else biases[tokens],
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    )


def _linear(rows: mx.array, head: Any, tokens: mx.array) -> nn.Linear:
    """A linear layer of some rows of an output head."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = rows
    if "bias" in head:
        layer.bias = head.bias[tokens]
    return layer
