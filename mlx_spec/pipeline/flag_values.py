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
    if match is None or not math.isfinite(number):
        raise InvalidRequest(
            f"[flags] --memory-limit {size!r}, expected a size (8GB), a share (50%, 0.5) or bytes"
        )
    unit = match["unit"].lower()
    bytes_or_share = number / 100 if unit == "%" else number * _UNITS[unit.removesuffix("b")]
    if bytes_or_share > 1 and (unit == "%" or bytes_or_share < 2):  # no memory has one byte
        raise InvalidRequest(f"[flags] --memory-limit {size!r} is more than there is")
    return bytes_or_share if bytes_or_share <= 1 else int(bytes_or_share)


def json_object(text: str) -> dict[str, Any]:
    """The keywords of a template, from the command line.

    Raises:
        InvalidRequest: no JSON, or no object.
    """
    return _object("--chat-template-config", text, """'{"enable_thinking": false}'""")


def bias_object(text: str) -> dict[str, Any]:
    """Biases by token id, as ``json_object`` reads keywords."""
    return _object("--logit-bias", text, """'{"50256": -100}'""")


def _object(flag: str, text: str, example: str) -> dict[str, Any]:
    wanted = f"expected an object, such as {example}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"[flags] {flag} {text!r} is not JSON ({error}); {wanted}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"[flags] {flag} {text!r}, {wanted}")
    return value


def token_ids(texts: tuple[str, ...]) -> tuple[int, ...]:
    """Token ids written as numbers.

    Raises:
        InvalidRequest: one of them is no number.
    """
    for text in texts:
        if not (text.isascii() and text.isdigit()):
            raise InvalidRequest(
                f"[flags] --stop-token-id {text!r}, expected a token's number; for its text "
                "there is --extra-eos-token"
            )
    return tuple(map(int, texts))


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
