"""``MixerCall``: one call of a module that writes a state, in a form that can be run again.

A mixer runs on a shallow clone, whose weights are its own and some of whose children are ours: they
note what they gave, or give what was noted of the tokens in question::

    mixer   in_proj   conv1d  A_log  norm  out_proj
      |        |         |      |      |       |
    clone   _Noting      |      |      |       |      a pass: calls the child, keeps its output
    clone   _Given       |      |      |       |      run again: no call, the output that was kept

Outputs that nobody asks for (``out_proj``'s, when a mixer is run again) are never computed: MLX is
lazy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.cache.layout import lone_states

Call: TypeAlias = Callable[..., Any]
States: TypeAlias = list[Any]  # arrays, or None before the first token
# What takes a child's place in a clone, by its name.
StandIn: TypeAlias = Callable[[str, Any], Any]


@dataclass(frozen=True)
class MixerCall:
    """What a mixer is called with.

    Attributes:
        code: what a call of it is in a model's own class.
        module: the mixer.
        values: its arguments by name, but for the one that holds states.
        cache: the name of that.
        size: how many arrays the states are.
        offsets: where a cache is made of several members: where each stands, None for the states;
            None where the argument is the states themselves.
    """

    code: Call
    module: Any
    values: dict[str, Any]
    cache: str
    size: int
    offsets: tuple[Any, ...] | None = None

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of the call."""
        arrays = (value for value in self.values.values() if isinstance(value, mx.array))
        rows, width = next(array.shape[:2] for array in arrays if array.ndim > 1)
        return rows, width

    def run(self, clone: Any, cache: Any, **changes: Any) -> Any:
        """The mixer's code, with some of its arguments changed."""
        return self.code(clone, **{**self.values, **changes, self.cache: cache})

    def clone(self, stand_in: StandIn, cls: type | None = None) -> Any:
        """A copy of the mixer that shares its weights, of another class if one is given."""
        cls = cls or type(self.module)
        clone: Any = cls.__new__(cls)  # type: ignore[call-overload]
        vars(clone).update(vars(self.module))
        for name, value in self.module.items():
            child = stand_in(name, value) if isinstance(value, nn.Module) else value
            dict.__setitem__(clone, name, child)
        return clone

    def stand_at(
        self, states: States, index: int = 0, lengths: mx.array | None = None
    ) -> tuple[Any, Any]:
        """A cache that holds states, for another run.

        Args:
            states: from before the call, or of its token ``index``.
            index: tokens of the call that were read since.
            lengths: [rows], how many of each row's tokens count; None: all.

        Returns:
            The states, which the run changes; and the argument that the mixer wants, which is the
            same or has other members beside.
        """
        own = lone_states(states, lengths)
        if self.offsets is None:
            return own, own
        return own, [own if at is None else _PassingBy(at + index) for at in self.offsets]

    def token(self, index: int) -> dict[str, Any]:
        """The arguments that differ where token ``index`` of each row is the only one."""
        rows, width = self.shape
        return {
            name: None if name == "mask" else _of_token(value, index, rows, width)
            for name, value in self.values.items()
        }


def _of_token(value: Any, index: int, rows: int, width: int) -> Any:
    """One token of an argument; what goes by rows alone, or is a number, is taken for positions."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value + index
    if isinstance(value, mx.array):
        if value.shape[:2] == (rows, width):
            return value[:, index : index + 1]
        if value.shape in ((rows,), ()) and mx.issubdtype(value.dtype, mx.integer):
            return value + index
    return value


class _PassingBy:
    """For a cache of keys and values, when the states beside it are made again: keeps nothing."""

    def __init__(self, offset: Any) -> None:
        self.offset = offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values


class Noted:
    """Marks a mixer's class made here (``binding``)."""

    _beneath: type  # the class that the mixer had before


def own_class(cls: type) -> type:
    """The class that a module has but for that mark."""
    own: type = getattr(cls, "_beneath", cls)
    return own


@cache
def argument_names(code: Call) -> tuple[str, ...]:
    """What the arguments of a call are named, the module apart."""
    return tuple(inspect.signature(code).parameters)[1:]


class Notes:
    """What the children of a mixer gave, in the order of their calls.

    Only of those that cannot depend on the state: each was called with the mixer's own arguments,
    or with what such children gave, and so gives the same from any state.

    Args:
        call: the mixer and its arguments.
    """

    def __init__(self, call: MixerCall) -> None:
        self.outputs: dict[str, list[Any]] = {}
        self._call = call
        self._given = list(call.values.values())
        self._depend: set[str] = set()

    def take(self, name: str, child: Any) -> Any:
        """In a child's place: calls it, and notes."""
        return _Noting(child, name, self)

    def hear(self, name: str, inputs: list[Any], output: Any) -> None:
        """What a child was given and gave."""
        known = all(any(one is given for given in self._given) for one in inputs)
        if known and getattr(output, "shape", ())[:2] == self._call.shape:
            self._given.append(output)
            self.outputs.setdefault(name, []).append(output)
        else:
            self._depend.add(name)

    def give(self, index: int | None = None) -> StandIn:
        """Children that give again what they gave: of all tokens, or of token ``index`` alone."""

        def stand_in(name: str, child: Any) -> Any:
            if name in self._depend or name not in self.outputs:
                return child
            outputs = self.outputs[name]
            if index is not None:
                outputs = [output[:, index : index + 1] for output in outputs]
            return _Given(child, iter(outputs))

        return stand_in


class _InPlace:
    """In a child's place; whatever else is asked of it is the child's."""

    def __init__(self, child: Any) -> None:
        self._child = child

    def __getattr__(self, name: str) -> Any:
        return getattr(self._child, name)


class _Noting(_InPlace):
    def __init__(self, child: Any, name: str, notes: Notes) -> None:
        super().__init__(child)
        self._name, self._notes = name, notes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._child(*args, **kwargs)
        self._notes.hear(self._name, [*args, *kwargs.values()], output)
        return output


class _Given(_InPlace):
    def __init__(self, child: Any, outputs: Iterator[Any]) -> None:
        super().__init__(child)
        self._outputs = outputs

    def __call__(self, *_: Any, **__: Any) -> Any:
        return next(self._outputs)
