"""A function of somebody else's module, run with another function in a global's place."""

from __future__ import annotations

import types
from typing import Any


def with_global(function: Any, name: str, value: Any) -> Any:
    """The same code, with ``value`` for what it finds under ``name`` in its module."""
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, name: value},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
