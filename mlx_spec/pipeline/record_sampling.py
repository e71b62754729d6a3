"""Sampling options that a record brings itself, where the user names the fields that are such.

Data may have a column called ``temperature`` that means the weather, so nothing is taken unasked.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.config import SamplingParams
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flag_values import bias_object
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.options import options_of

_NUMBERS: dict[str, type[int] | type[float]] = {
    one.sets[1]: one.kinds[0]
    for one in options_of(Flags).values()
    if one.sets is not None and one.sets[0] is SamplingParams and one.kinds[0] in (int, float)
}
"""Fields of ``SamplingParams`` that are numbers."""

KNOWN = (*_NUMBERS, "stop", "logit_bias")


def check_names(names: Seq[str]) -> None:
    """Refuse names that are no sampling options.

    Raises:
        InvalidRequest: the first of them, with the nearest one that is.
    """
    for name in names:
        if name not in KNOWN:
            close = difflib.get_close_matches(name, KNOWN, 1, 0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(KNOWN)}"
            raise InvalidRequest(
                f"[generate] --sampling-fields: {name!r} is no such option; {hint}"
            )


def sampling_of(fields: Mapping[str, Any], names: Seq[str]) -> dict[str, Any]:
    """The options that a record has; one that it lacks, or that is null or empty, is the run's.

    Raises:
        InvalidRequest: a value that is none of its option's type.
    """
    given = {name: fields[name] for name in names if fields.get(name) not in (None, "")}
    return {name: _value(name, value) for name, value in given.items()}


def _value(name: str, value: Any) -> Any:
    kind = _NUMBERS.get(name)
    if name == "logit_bias":
        return bias_object(value) if isinstance(value, str) else value
    if kind is None:
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
            raise InvalidRequest(f"field {name!r} holds {value!r}, expected a text or texts")
        return tuple(texts)
    try:
        # A CSV file has texts only, and a column with gaps 24.0 for 24.
        number = value if isinstance(value, int) else float(value)
        if not isinstance(value, bool) and (kind is float or number == int(number)):
            return kind(number)
    except (TypeError, ValueError, OverflowError):  # no number, or none that is finite
        pass
    word = "an integer" if kind is int else "a number"
    raise InvalidRequest(f"field {name!r} holds {str(value)[:40]!r}, expected {word}")
