"""Tells ``ssm_update`` where rows end, for mixers that hand it a mask and no lengths (Nemotron-H).

With a mask alone mlx-lm's function makes nothing of a row that ends before the last token: what it
takes for the state is the decay to there, of which masked tokens have none. The mixer's own code is
run with a function in that one's place which counts the mask.
"""

from __future__ import annotations

import inspect
import types
from functools import cache
from typing import Any

from mlx_lm.models import ssm

from mlx_spec.model.rewired import with_global

_NAME = "ssm_update"
_SIGNATURE = inspect.signature(ssm.ssm_update)


@cache
def told_row_ends(cls: Any) -> type | None:
    """A subclass of a mixer's class whose code counts masks; None where it calls no such one."""
    functions = {
        name: function
        for base in reversed(cls.__mro__)
        for name, function in vars(base).items()
        if isinstance(function, types.FunctionType)
        and _NAME in function.__code__.co_names
        and function.__globals__.get(_NAME) is ssm.ssm_update
    }
    told = {name: with_global(function, _NAME, _counting) for name, function in functions.items()}
    return type(cls.__name__, (cls,), told) if told else None


def _counting(*args: Any, **kwargs: Any) -> Any:
    """As ``ssm_update``; a mask is right-padded."""
    given = _SIGNATURE.bind(*args, **kwargs).arguments
    mask = given.get("mask")
    if mask is not None and given.get("lengths") is None:
        given["lengths"] = mask.sum(axis=1)
    return ssm.ssm_update(**given)
