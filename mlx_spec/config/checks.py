"""The checks that all option objects share."""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from mlx_spec.errors import InvalidRequest


def check_number(owner: str, name: str, value: Any, low: float, high: float, bounds: str) -> None:
    """Refuse what is not a finite number in the interval written as ``bounds``."""
    valid = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, float):
        valid = math.isfinite(value)
    if valid:  # integers of any size compare; those that no float holds are beyond all bounds
        valid = (value > low if bounds[0] == "(" else value >= low) and value <= high
    if not valid:
        raise InvalidRequest(f"[{owner}] {name}={_short(value)}, expected a number in {bounds}")


def plain_numbers(options: Any) -> None:
    """Make numpy's numbers Python's own, so that all checks and messages speak of one kind."""
    for item in fields(options):
        value = getattr(options, item.name)
        if isinstance(value, Integral) and not isinstance(value, (bool, int)):
            object.__setattr__(options, item.name, int(value))
        elif isinstance(value, Real) and not isinstance(value, (bool, int, float)):
            object.__setattr__(options, item.name, float(value))


def check_integer(owner: str, name: str, value: Any, low: int, more: str = "") -> None:
    """Refuse what is not an integer of at least ``low``; ``more`` is what may be said besides."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InvalidRequest(
            f"[{owner}] {name}={_short(value)}, expected an integer >= {low}{more}"
        )


def _short(value: Any) -> str:
    """What was given, as far as a line has room for it."""
    if isinstance(value, int) and value.bit_length() > 200:  # nor does python write all of them
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
