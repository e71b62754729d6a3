"""How families name the heads that their checkpoints bring: found by the names of tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_spec.errors import UnsupportedModel

Weights = dict[str, mx.array]


@dataclass(frozen=True)
class MTPLayout:
    """How a family names such heads.

    Attributes:
        projection: a pattern of the projections' names, by which the layout is known.
        outer, block: where the other tensors and the decoder layer are, with what the pattern
            found in the place of ``{}``.
        embedding_norm, hidden_norm, join, norm: names of its parts.
        layers: a pattern of the names of decoder layers, where several share one projection; what
            it finds is put in the place of ``block``'s second ``{}``.
        hidden_first: the hidden state stands before the embedding where they are joined.
        normed: the next state is what the norm gives, and not what it reads.
        shifted: weights of norms are kept less one.
        chained: of several each reads the states of the one before it, not the target's.
        renamed: what the decoder layer calls otherwise than mlx-lm's class.
    """

    projection: str
    outer: str
    block: str
    embedding_norm: str
    hidden_norm: str
    join: str
    norm: str
    layers: str | None = None
    hidden_first: bool = False
    normed: bool = False
    shifted: bool = False
    chained: bool = True
    renamed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class MTPPlace:
    """Where one head of a checkpoint is.

    Attributes:
        layout: how it is named.
        outer, block: what the names of its other tensors and of its decoder layer begin with.
    """

    layout: MTPLayout
    outer: str
    block: str

    def own(self, found: Mapping[str, mx.array]) -> Weights:
        """Its tensors, by what follows the prefixes."""
        weights: Weights = {}
        for name, value in found.items():
            if name.startswith(self.block):
                name = name.removeprefix(self.block)
                for theirs, ours in self.layout.renamed:
                    name = name.replace(theirs, ours)
                weights[name] = value
            elif name.startswith(self.outer) and not self._of_another(name):
                weights[name.removeprefix(self.outer)] = value
        return weights

    def _of_another(self, name: str) -> bool:
        layers = self.layout.layers
        return layers is not None and re.fullmatch(layers, name) is not None


LAYOUTS = (
    # DeepSeek-V3 and those that follow it; GLM-4.5.
    MTPLayout(
        r"model\.layers\.(\d+)\.eh_proj\.weight",
        "model.layers.{}.",
        "model.layers.{}.",
        "enorm",
        "hnorm",
        "eh_proj",
        "shared_head.norm",
    ),
    # Qwen3-Next, Qwen3.5.
    MTPLayout(
        r"(mtp)\.fc\.weight",
        "{}.",
        "{}.layers.{}.",
        "pre_fc_norm_embedding",
        "pre_fc_norm_hidden",
        "fc",
        "norm",
        layers=r"mtp\.layers\.(\d+)\..+",
        normed=True,
        shifted=True,
    ),
    # MiMo.
    MTPLayout(
        r"model\.mtp_layers\.(\d+)\.input_proj\.weight",
        "model.mtp_layers.{}.",
        "model.mtp_layers.{}.",
        "token_layernorm",
        "hidden_layernorm",
        "input_proj",
        "final_layernorm",
        hidden_first=True,
        normed=True,
    ),
    # MiMo-V2, whose heads look back as far as a window and are dense.
    MTPLayout(
        r"model\.mtp\.layers\.(\d+)\.eh_proj\.weight",
        "model.mtp.layers.{}.",
        "model.mtp.layers.{}.",
        "enorm",
        "hnorm",
        "eh_proj",
        "final_layernorm",
        normed=True,
        chained=False,
        renamed=(("pre_mlp_layernorm.", "post_attention_layernorm."),),
    ),
)


def places_of(names: Mapping[str, Any]) -> Seq[MTPPlace]:
    """Where the heads of a checkpoint are, the nearest first, by the first layout that fits.

    Raises:
        UnsupportedModel: there are none, or none that is laid out as is known here.
    """
    for layout in LAYOUTS:
        keys: list[tuple[str, ...]] = [(key,) for key in _keys(layout.projection, names)]
        if keys and layout.layers is not None:
            keys = [(*keys[0], layer) for layer in _keys(layout.layers, names)]
        if keys:
            outer, block = layout.outer.format, layout.block.format
            return [MTPPlace(layout, outer(*key), block(*key)) for key in keys]
    others = [name for name in sorted(names) if re.search(r"mtp|nextn|eh_proj", name)]
    if others:
        raise UnsupportedModel(
            f"its head is laid out in a way that is not known here (a tensor is {others[0]!r})"
        )
    raise UnsupportedModel(
        "no tensors of a head for the token after next; a converted checkpoint has lost them, the "
        "original may have them"
    )


def _keys(pattern: str, names: Mapping[str, Any]) -> list[str]:
    """What a pattern finds in names, each once, in the order of numbers."""
    found = {match.group(1) for name in names if (match := re.fullmatch(pattern, name))}
    return sorted(found, key=lambda key: (len(key), key))
