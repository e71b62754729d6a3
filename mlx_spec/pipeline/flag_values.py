"""What people write for an option, and what it means: sizes, keywords in JSON, tokens."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from mlx_spec.errors import InvalidRequest

_UNITS = {"": 1, "b": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(?P<number>[\d.]+(?:e[+-]?\d+)?)\s*(?P<unit>%|(?:[kmgt]i?)?b?)", re.IGNORECASE)


def memory_size(size: str | float) -> int | float:
    """Bytes (an int) or a share (a float): ``8GB``, ``8GiB``, ``50%``, a share up to 1, or bytes.

    Raises:
        InvalidRequest: none of these.
    """
    match = _SIZE.fullmatch(str(size).strip())
    try:
        number = float(match["number"]) if match else math.nan
    except ValueError:  # two points
        number = math.nan
    if match is None or math.isnan(number):
        raise InvalidRequest(
            f"[flags] --memory-limit {size!r}, expected a size (8GB), a share (50%, 0.5) or bytes"
        )
    unit = match["unit"].lower()
    bytes_or_share = number / 100 if unit == "%" else number * _UNITS[unit.removesuffix("b")]
    return bytes_or_share if bytes_or_share <= 1 else int(bytes_or_share)


def json_object(text: str) -> dict[str, Any]:
    """The keywords of a template, from the command line.

    Raises:
        InvalidRequest: no JSON, or no object.
    """
    wanted = """expected an object, such as '{"enable_thinking": false}'"""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(
            f"[flags] --chat-template-config {text!r} is not JSON ({error}); {wanted}"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"[flags] --chat-template-config {text!r}, {wanted}")
    return value


def token_id(token: str, vocabulary: dict[str, int]) -> int:
    """The id of a token written as its number, as for mlx-lm, or as text.

    Raises:
        InvalidRequest: it is neither.
    """
    if token.isascii() and token.isdigit() and int(token) in vocabulary.values():
        return int(token)
    if token in vocabulary:
        return vocabulary[token]
    raise InvalidRequest(f"[flags] --extra-eos-token {token!r} is no token of this model")
