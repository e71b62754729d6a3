"""Attention that computes one new token in another way than several, given each token as a row.

``TokensAsRows`` does so with a whole model. Where other layers fold tokens into states, which need
them in their order, only the attention's own modules are given rows: of a pass that may be cut, of
our caches. All other calls, mlx-lm's own caches among them, are their own class's::

    h [B, N, D] -- mixer [B, N, D] -- attention: [B * N, 1, D] .. [B, N, D] -- mixer [B, N, D]

Like the kernels' binding it changes the class of an instance and nothing else, and can be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import mlx.core as mx

from mlx_spec.cache.several import leaves
from mlx_spec.cache.token_rows import as_token_rows
from mlx_spec.model.readings import ONE_TOKEN, all_having
from mlx_spec.model.recurrence.mixer import argument_names

Call = Callable[..., Any]

# While a verdict is sought: the classes of modules that were given rows, in this thread.
_RAN: ContextVar[set[type] | None] = ContextVar("ran", default=None)


class _AsRows:
    """Marks the classes made here."""

    _own: type


def bind_as_rows(model: Any) -> list[Any]:
    """Let the modules that have such a branch be given rows, from now on; twice is as once.

    Args:
        model: any model of mlx-lm.

    Returns:
        The modules that were not bound before.
    """
    classes = all_having(model, ONE_TOKEN)
    modules = [
        module
        for _, module in model.named_modules()
        if not isinstance(module, _AsRows) and classes.intersection(type(module).__mro__)
    ]
    made: dict[type, type] = {}
    for module in modules:
        own = type(module)
        if own not in made:
            body = {"__call__": _as_rows(own.__call__, own), "_own": own}
            made[own] = type(own.__name__, (_AsRows, own), body)
        module.__class__ = made[own]
    return modules


def unbind_as_rows(model: Any) -> None:
    """Make a model as it was."""
    _undo([module for _, module in model.named_modules()])


def _undo(modules: list[Any]) -> None:
    for module in modules:
        if isinstance(module, _AsRows):
            module.__class__ = module._own


@contextmanager
def trying_rows(model: Any) -> Iterator[Callable[[], bool]]:
    """While a verdict is sought: bound, and asked whether all that branches was given rows."""
    ran: set[type] = set()
    modules, classes = bind_as_rows(model), all_having(model, ONE_TOKEN)
    before = _RAN.set(ran)
    try:
        yield lambda: all(any(issubclass(one, cls) for one in ran) for cls in classes)
    finally:
        _RAN.reset(before)
        _undo(modules)


def _as_rows(own: Call, cls: type) -> Call:
    """The call of a bound class."""
    names = argument_names(own)

    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        values = dict(zip(names, args, strict=False)) | kwargs
        x, cache = values.get(names[0]), cast("Any", values.get("cache"))
        if not isinstance(x, mx.array) or not _may_be_cut(cache):
            return own(module, *args, **kwargs)
        rows, width = x.shape[:2]
        caches = as_token_rows(cache)
        mask = next(leaves(caches)).make_mask(1)
        values |= {names[0]: x.reshape(rows * width, 1, -1), "mask": mask, "cache": caches}
        output = own(module, **values)
        if (ran := _RAN.get()) is not None:
            ran.add(cls)
        return output.reshape(rows, width, -1)

    return call


def _may_be_cut(cache: Any) -> bool:
    """Whether these are our caches, by position, in a pass of several tokens that may be cut."""
    if cache is None:
        return False
    layers = list(leaves(cache))
    spans = [getattr(layer, "span", None) for layer in layers]
    ours = not any(getattr(layer, "folds", True) for layer in layers)
    return ours and all(span is not None and span.tentative and span.width > 1 for span in spans)
