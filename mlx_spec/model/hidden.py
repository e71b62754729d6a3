"""Hidden states of a pass, beside its logits and without a second pass.

Wanted are what the model's head reads (after the last norm), and what chosen layers gave. Those
modules become instances of a subclass of their own class, which notes while somebody asks
(``noting``, of this thread alone) and is the module's own code otherwise. Arithmetic, weights and
the tree of modules are untouched, nothing that is not asked for is kept, and it can be undone::

    tokens - embedding - layer 0 - ... - layer i - ... - norm -|- head - logits
                                            |                  |
                                         layers             final
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_spec.cache.layout import model_name, own_caches
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.rotations import shared_angles

Call = Callable[..., Any]


@dataclass(frozen=True)
class HiddenLayers:
    """Which hidden states are wanted.

    Attributes:
        final: what the head reads, [B, N, D].
        layers: outputs of these layers, by number; they come before it, side by side.
    """

    final: bool = True
    layers: tuple[int, ...] = ()


@dataclass
class HiddenNotes:
    """What was noted since the last :meth:`take`.

    Attributes:
        head: the module that made logits.
        embeddings: modules that were called with tokens.
        instead: logits that the head is to give, whatever it reads; None: its own.
        chosen: [C] int32, the tokens of the pass that the head is to read; None: all.
    """

    wanted: HiddenLayers
    head: Any = None
    embeddings: list[Any] = field(default_factory=list)
    instead: mx.array | None = None
    chosen: mx.array | None = None
    _found: dict[int, mx.array] = field(default_factory=dict)

    def hear(self, place: int, state: mx.array) -> None:
        """Of a layer, or of the head (``FINAL``)."""
        self._found[place] = state

    def take(self) -> mx.array:
        """[B, N, S * D] of the last call of the model, layers first.

        Raises:
            UnsupportedModel: some of them were not noted.
        """
        places = [*self.wanted.layers, *[FINAL] * self.wanted.final]
        found, self._found = self._found, {}
        missing = [place for place in places if place not in found]
        if missing:
            names = ", ".join("the head" if at == FINAL else f"layer {at}" for at in missing)
            raise UnsupportedModel(
                f"[hidden] nothing was seen of {names}: this model calls them in another way, or "
                "kernels were bound or unbound since"
            )
        states = [found[place] for place in places]
        return states[0] if len(states) == 1 else mx.concatenate(states, axis=-1)


FINAL = -1
_NOTES: ContextVar[HiddenNotes | None] = ContextVar("notes", default=None)


class _Tapped:
    """Marks the classes made here."""

    _beneath: type  # the class that the module had before


def bind_hidden(model: Any, wanted: HiddenLayers) -> None:
    """Let a model's modules note their states while somebody asks; twice is as once.

    Raises:
        UnsupportedModel: it has no such layer, or its head cannot be found.
    """
    layers = list(getattr(model, "layers", ()))
    for place in wanted.layers:
        if not 0 <= place < len(layers):
            raise UnsupportedModel(
                f"[hidden] layer {place} asked of a {model_name(model)!r} model of {len(layers)}"
            )
        _tap(layers[place], {"__call__": _noting_output(place)})
    for head in _possible_heads(model):
        if hasattr(head, "as_linear"):  # what an embedding says logits by
            _tap(head, {"__call__": _noting_embedding, "as_linear": _noting_input})
        else:
            _tap(head, {"__call__": _noting_input})
    with noting(wanted) as notes:
        described(model)
        notes.take()


def unbind_hidden(model: Any) -> None:
    """Make a model as it was."""
    for _, module in model.named_modules():
        if isinstance(module, _Tapped):
            module.__class__ = module._beneath


@contextmanager
def noting(wanted: HiddenLayers) -> Iterator[HiddenNotes]:
    """While it lasts, calls of bound models are noted, in this thread."""
    notes = HiddenNotes(wanted)
    before = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(before)


def described(model: Any) -> mx.array:
    """Logits [1, 1, V] of a call that is never computed."""
    logits: mx.array = model(mx.zeros((1, 1), mx.int32), cache=own_caches(model))
    return logits


def call_model(model: Any, tokens: mx.array, caches: Any) -> list[mx.array]:
    """Logits [B, N, V] of a call, and behind them its hidden states where they are asked for."""
    with shared_angles():
        logits: mx.array = model(tokens, cache=caches)
    notes = _NOTES.get()
    return [logits] if notes is None else [logits, notes.take()]


def _possible_heads(model: Any) -> list[Any]:
    """Modules with a row of weights for each token: the head, or the embedding in its place."""
    shapes = [
        (module, module["weight"].shape)
        for _, module in model.named_modules()
        if isinstance(module.get("weight"), mx.array) and module["weight"].ndim == 2
    ]
    embeddings = [shape[0] for module, shape in shapes if hasattr(module, "as_linear")]
    return [module for module, shape in shapes if shape[0] in embeddings]


def _tap(module: Any, entries: dict[str, Callable[[Call], Call]]) -> None:
    own = type(module)
    if not issubclass(own, _Tapped):
        calls = {name: make(getattr(own, name)) for name, make in entries.items()}
        module.__class__ = type(own.__name__, (_Tapped, own), {**calls, "_beneath": own})


def _noting_input(own: Call) -> Call:
    """The call of a head's subclass."""

    def call(module: Any, x: mx.array) -> Any:
        notes = _NOTES.get()
        if notes is not None:
            notes.hear(FINAL, x)
            notes.head = module
            if notes.instead is not None:
                return notes.instead
            if notes.chosen is not None:
                x = x.reshape(-1, 1, x.shape[-1])[notes.chosen]
        return own(module, x)

    return call


def _noting_embedding(own: Call) -> Call:
    """The call of an embedding's subclass."""

    def call(module: Any, x: mx.array) -> Any:
        notes = _NOTES.get()
        if notes is not None:
            notes.embeddings.append(module)
        return own(module, x)

    return call


def _noting_output(place: int) -> Callable[[Call], Call]:
    """The call of a layer's subclass."""

    def make(own: Call) -> Call:
        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            output = own(module, *args, **kwargs)
            notes = _NOTES.get()
            if notes is not None:
                notes.hear(place, output if isinstance(output, mx.array) else output[0])
            return output

        return call

    return make
