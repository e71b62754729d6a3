"""``shard``: this process keeps its part of a model, as mlx-lm's class of it divides itself.

*Tensor*: every process holds a part of each matrix, and they add up what these give, twice a layer.
*Pipeline*: every process holds some layers, and hands on what comes out of them. Both are mlx-lm's
own code (``Model.shard``, ``Model.model.pipeline``); weights are read lazily, so that no process
ever holds more than its part.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_spec.cache.layout import model_name
from mlx_spec.errors import InvalidRequest, RankError, UnsupportedModel
from mlx_spec.model.rank_link import RankLink
from mlx_spec.model.rank_watch import RankWatch
from mlx_spec.model.ranks import SeveralRanks, note_ranks, note_watch

_HEADS = ("n_heads", "n_kv_heads", "num_heads", "num_key_value_heads", "num_attention_heads")
# The processes of this program, once they have met.
_MET: dict[str, tuple[Any, RankLink, RankWatch]] = {}


def divide(model: Any, kind: str | None) -> str | None:
    """Keep this process's part; nothing of the model may be computed yet.

    Args:
        model: as mlx-lm loads it, whole.
        kind: ``"tensor"`` or ``"pipeline"``; None leaves it whole.

    Returns:
        Which kernels a divided model takes: what one machine finds quicker another may not.

    Raises:
        InvalidRequest: there is one process only.
        UnsupportedModel: mlx-lm's class cannot be divided so, or not among so many.
        RankError: the processes do not find each other.
    """
    if kind is None:
        return None
    group, link, watch = _met(kind)
    name, size, layers = model_name(model), group.size(), len(getattr(model, "layers", ()))
    if kind == "pipeline":
        inner: Any = getattr(model, "model", None)
        if not hasattr(inner, "pipeline"):
            raise UnsupportedModel(
                f"mlx-lm's class of this {name!r} model has no pipeline; try shard='tensor'"
            )
        if layers < size:
            raise UnsupportedModel(f"{layers} layers cannot be divided among {size}")
        inner.pipeline(group)
    else:
        if not hasattr(model, "shard"):
            raise UnsupportedModel(
                f"mlx-lm's class of this {name!r} model cannot divide its matrices; try "
                "shard='pipeline'"
            )
        before = _heads(model)
        model.shard(group)
        for place, heads in _heads(model).items():
            if heads not in (before.get(place), before.get(place, 0) / size):
                raise UnsupportedModel(
                    f"{before.get(place)} heads ({place}) cannot be divided among {size} processes"
                )
    note_ranks(model, SeveralRanks(link, kind, watch, layers))
    return "reference"


def meet(kind: str) -> RankWatch:
    """Find the other processes, before anything is read or loaded; this one's watch over them.

    From then on they end when rank 0's program does, however that happens.

    Raises:
        InvalidRequest: there is one process only.
        RankError: they do not find each other.
    """
    return _met(kind)[2]


def _heads(model: Any) -> dict[str, int]:
    """Numbers of heads, by the modules that hold them."""
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name in _HEADS
        if type(value := getattr(module, name, None)) is int
    }


def _met(kind: str) -> tuple[Any, RankLink, RankWatch]:
    """The processes, as MLX knows them, links to them and a watch over them."""
    try:
        group = mx.distributed.init()
    except RuntimeError as error:
        raise RankError(f"the processes do not find each other: {error}") from error
    if group.size() == 1:
        raise InvalidRequest(
            f"shard={kind!r}, but this is one process alone; start several: "
            f"mlx.launch -n 2 -- mlx-spec generate --shard {kind} ..."
        )
    if "" not in _MET:
        link, watch = RankLink(group), RankWatch(group.rank(), group.size())
        watch.heard.append(lambda words: setattr(link, "lost", words))
        _connect(link, watch)
        note_watch(watch)
        _MET[""] = group, link, watch
    return _MET[""]


def _connect(link: RankLink, watch: RankWatch) -> None:
    """The watch's address travels over MLX's links."""
    server = invitation = None
    refused = ""
    try:
        if link.rank == 0:
            server, invitation = RankWatch.listen()
    except OSError as error:
        refused = str(error)
    invitation = link.share(invitation)
    if invitation is None:
        raise RankError(f"rank 0 cannot be connected to: {refused or 'it says why'}")
    try:
        if server is not None:
            watch.accept(server, invitation)
        else:
            watch.connect(invitation)
    except OSError as error:
        raise RankError(
            f"rank {link.rank} of {link.size} cannot connect at {invitation.address}: {error}"
        ) from error
