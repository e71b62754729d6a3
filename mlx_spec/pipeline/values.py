"""Values as JSON has them: what other formats and Python know besides becomes what JSON can say.

- NaN and the infinities, which JSON has no word for, become null.
- Dates and times become ISO 8601 text, decimals their digits, bytes their text (base64 where they
  are none).
- Anything else becomes its text.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from mlx_spec.errors import InvalidRequest

# Templates, Parquet and JSON walk through values by recursion, which Python bounds at some 1000.
DEEPEST = 100


def plain(value: Any, depth: int = 0) -> Any:
    """A copy in dictionaries, lists, texts, finite numbers, truth values and None.

    Raises:
        InvalidRequest: it is nested more than ``DEEPEST`` deep.
    """
    if value is None or isinstance(value, (str, bool, int)):
        # Types that only extend these (enums, numpy's text) are written as these.
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth >= DEEPEST:
        raise InvalidRequest(f"nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {_key(key): plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one, depth + 1) for one in value]
    if hasattr(value, "tolist"):  # an array, or one number of one
        return plain(value.tolist(), depth + 1)
    return _text(value)


def to_json(value: Any) -> str:
    """One line of strict JSON (RFC 8259), letters as they are where UTF-8 can hold them."""
    good = plain(value)
    text = json.dumps(good, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON allows as an escape only
        return json.dumps(good, allow_nan=False)
    return text


def encodable(value: Any) -> Any:
    """A copy of a plain value without halves of surrogate pairs: their escapes stand there."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(one) for key, one in value.items()}
    return [encodable(one) for one in value] if isinstance(value, list) else value


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    known = plain(key)
    return known if isinstance(known, str) else json.dumps(known)


def _text(value: Any) -> str:
    if isinstance(value, (date, time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return base64.b64encode(data).decode()
    return str(value)
