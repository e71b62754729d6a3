"""Heads for the token after next that checkpoints bring ("MTP") and mlx-lm drops when it loads.

Their tensors are read from the checkpoint's own files. The decoder layer is of the target's own
class, and its weights go through the target's own ``sanitize`` as though they were layer 0's, so
that stacked experts, split projections and shifted norms are what mlx-lm makes of them. Embedding
and output head are the target's. All of them are one shape::

    token p+1 - embedding - norm --+
                                   +- projection - the target's layer - norm - output head
    hidden p -------------- norm --+                                 |     |
                                              next state: before it, or after it

Four ways of naming it are known (``mtp_layouts``); what else calls itself so is refused in words.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from mlx_spec.cache.layout import full_attention_cache, model_name, own_caches
from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.model.heads.head import Choices, LastStateHead
from mlx_spec.model.heads.mtp_layouts import MTPLayout, MTPPlace, Weights, places_of
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.model.heads.stack import HeadStack
from mlx_spec.model.source import locate


class MTPHead(LastStateHead):
    """Such a head.

    Args:
        layer: of the target's class.
        cache: makes the cache that it wants, of mlx-lm's classes.
        width: of embeddings and hidden states.
        eps: of the norms.
        layout: how it is put together.
    """

    def __init__(self, layer: Any, cache: Any, width: int, eps: float, layout: MTPLayout) -> None:
        super().__init__()
        self.layer = layer
        self.embedding_norm = nn.RMSNorm(width, eps=eps)
        self.hidden_norm = nn.RMSNorm(width, eps=eps)
        self.join = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=eps)
        self._own_cache, self.layout, self._width = cache, layout, width

    def check(self, parts: TargetParts) -> None:
        """Its width must be the target's."""
        if self._width != parts.width:
            raise UnsupportedModel(
                f"[MTPHead] made for a target of hidden size {self._width}; this one has "
                f"{parts.width}"
            )

    def own_cache(self) -> Any:
        """As the target makes one for such a layer."""
        return self._own_cache()

    def __call__(
        self, embeddings: mx.array, states: mx.array, mask: Any = None, cache: Any = None
    ) -> mx.array:
        """States [B, N, D] one position on."""
        both = [self.embedding_norm(embeddings), self.hidden_norm(states)]
        if self.layout.hidden_first:
            both.reverse()
        out: mx.array = self.layer(self.join(mx.concatenate(both, axis=-1)), mask, cache)
        return self.norm(out) if self.layout.normed else out

    def choices(self, parts: TargetParts) -> Choices:
        """By the target's output head, behind the norm."""
        return parts.output() if self.layout.normed else parts.output(behind=self.norm)


def make_draft_model(
    model: Any, path_or_repo: str | os.PathLike[str], revision: str | None = None
) -> MTPHead | HeadStack:
    """The head for drafting that a model's own checkpoint brings; for ``draft_model``.

    Of several, one behind the other, each guesses one token further (``HeadStack``).

    Args:
        model: the target, as ``load`` returned it.
        path_or_repo: where its *original* checkpoint is, as ``load`` takes it: a converted one has
            lost the head.
        revision: branch, tag or commit of a hub repository.

    Raises:
        ModelLoadError: there are no such files.
        UnsupportedModel: they hold no such head, or one that does not fit this model.
    """
    where = f"[make_draft_model] {os.fspath(path_or_repo)}"
    try:
        found = _tensors(locate(path_or_repo, revision))
        parts = TargetParts(model)
        heads = [_head(model, parts, found, place) for place in places_of(found)]
    except (UnsupportedModel, ModelLoadError) as error:
        raise type(error)(f"{where}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        words = " ".join(str(error).split())[:200]
        raise UnsupportedModel(
            f"{where}: its head does not fit this {model_name(model)!r} model ({words})"
        ) from error
    return heads[0] if len(heads) == 1 else HeadStack(heads, chained=heads[0].layout.chained)


def _head(model: Any, parts: TargetParts, found: Weights, place: MTPPlace) -> MTPHead:
    """One of them, with its weights."""
    weights = _named(_sanitized(model, found, place), place.layout)
    head = _empty(model, parts, place.layout, weights)
    head.load_weights(list(weights.items()))
    _cast(head, parts.dtype)
    _quantize_alike(head, model)
    mx.eval(head.parameters())
    return head


def _tensors(folder: Path) -> Weights:
    """All tensors of a folder, unread."""
    shards = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not shards:
        raise ModelLoadError("no folder with *.safetensors files")
    found: Weights = {}
    for shard in shards:
        tensors: Any = mx.load(str(shard))
        found.update(tensors)
    return found


def _sanitized(model: Any, found: Weights, place: MTPPlace) -> Weights:
    """The head's tensors as mlx-lm's class wants them, by what follows the layer's name."""
    own = {f"model.layers.0.{name}": value for name, value in place.own(found).items()}
    if place.layout.shifted:  # by this mlx-lm tells weights that nobody has changed
        own["model.layers.0.linear_attn.conv1d.weight"] = mx.zeros((1, 1, 4))
    sanitize = getattr(model, "sanitize", dict)
    layer = re.compile(r"(?:^|.*\.)layers\.0\.(.+)")
    made = ((layer.fullmatch(name), value) for name, value in sanitize(own).items())
    return {match.group(1): value for match, value in made if match}


def _named(raw: Weights, layout: MTPLayout) -> Weights:
    """The same by our names; what the target has already is left out."""
    ours = {
        layout.embedding_norm: "embedding_norm",
        layout.hidden_norm: "hidden_norm",
        layout.join: "join",
        layout.norm: "norm",
    }
    shared = ("embed_tokens.", "shared_head.head.", "layers.", "linear_attn.conv1d.", "rotary_emb.")
    named: Weights = {}
    for name, value in raw.items():
        part, _, leaf = name.rpartition(".")
        if part in ours:
            shift = 1.0 if layout.shifted and value.ndim == 1 else 0.0
            named[f"{ours[part]}.{leaf}"] = value + shift if shift else value
        elif not name.startswith(shared):
            named[f"layer.{name}"] = value
    return named


def _empty(model: Any, parts: TargetParts, layout: MTPLayout, weights: Weights) -> MTPHead:
    """A head over a layer of the target's class: of the kind that has such weights."""
    settings = _settings(model)
    kinds = list(_layers(model, settings))
    layer, cache = next((kind for kind in kinds if _fits(kind[0], weights)), kinds[0])
    eps = getattr(settings, "rms_norm_eps", getattr(settings, "layernorm_epsilon", 1e-6))
    head = MTPHead(layer, cache, parts.width, float(eps), layout)
    if getattr(layer, "is_sliding_window", False):
        head.window = int(settings.sliding_window_size)
    return head


def _layers(model: Any, settings: Any) -> Iterator[tuple[Any, Any]]:
    """Layers of the target's class, and what makes the cache of each: of the kind that has full
    attention; where a class is told its kinds by flags, of all of them."""
    layers = list(model.layers)
    attending = [at for at, layer in enumerate(layers) if not getattr(layer, "is_linear", False)]
    if not attending:
        raise UnsupportedModel(f"no layer of this {model_name(model)!r} model has full attention")
    template = attending[-1]
    cls = type(layers[template])
    own = getattr(importlib.import_module(cls.__module__), cls.__name__)  # without our bindings
    asked = list(inspect.signature(own).parameters)[1:]
    if asked and all(name.startswith("is_") for name in asked):
        for flags in product((False, True), repeat=len(asked)):
            # Which positions a layer sees is its mask's affair (``Head.window``).
            yield own(settings, **dict(zip(asked, flags, strict=True))), full_attention_cache
        return
    layer = own(settings, template) if asked else own(settings)
    yield layer, lambda: own_caches(model)[template]


def _fits(layer: Any, weights: Weights) -> bool:
    """Whether a layer has the weights' names and shapes."""
    own = {f"layer.{name}": value.shape for name, value in tree_flatten(layer.parameters())}
    given = {name: v.shape for name, v in weights.items() if name.startswith("layer.")}
    return own == given


def _settings(model: Any) -> Any:
    """What the layers were made of."""
    for owner in (model, getattr(model, "language_model", None)):
        settings = getattr(owner, "args", None)
        if hasattr(settings, "num_hidden_layers"):
            return settings
    raise UnsupportedModel(f"no settings of layers in this {model_name(model)!r} model")


def _cast(head: MTPHead, dtype: mx.Dtype) -> None:
    """The target's type of numbers."""

    def cast(value: mx.array) -> mx.array:
        return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value

    head.update(tree_map(cast, head.parameters()))


def _quantize_alike(head: MTPHead, model: Any) -> None:
    """As the target's layers are: a head in more bits would cost more than it is worth."""
    found = [m for _, m in model.named_modules() if hasattr(m, "bits") and hasattr(m, "group_size")]
    if found:
        bits, size = found[0].bits, found[0].group_size

        def fits(path: str, module: Any) -> bool:
            if not hasattr(module, "to_quantized") or path.endswith("gate"):
                return False
            return bool(module.weight.shape[-1] % size == 0)

        nn.quantize(head.layer, group_size=size, bits=bits, class_predicate=fits)
