"""Sampling options that a record brings itself, where the user names the fields that are such.

Data may have a column called ``temperature`` that means the weather, so nothing is taken unasked.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.config import SamplingParams, Structure
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

_STRUCTURES: dict[str, Callable[[Any], Structure | None]] = {
    "json_schema": Structure.json_schema,
    "response_format": Structure.of,
    "regex": Structure.regex,
    "choices": Structure.choices,
    "grammar": Structure.grammar,
}
"""Fields that say what the record's text must be."""

KNOWN = (*_NUMBERS, "stop", "logit_bias", *_STRUCTURES)


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
    shapes = [name for name in given if name in _STRUCTURES]
    if len(shapes) > 1:
        raise InvalidRequest(f"fields {' and '.join(map(repr, shapes))}: one says what the text is")
    options = {name: _value(name, v) for name, v in given.items() if name not in _STRUCTURES}
    if shapes:
        options["structure"] = structure_of(shapes[0], given[shapes[0]])
    return options


def structure_of(name: str, value: Any, kind: str | None = None) -> Structure | None:
    """What a field says of the text.

    Args:
        name: the field, for errors.
        value: a text or, where that is JSON, the value itself.
        kind: which of the options it is; None: the one that the field is called by.

    Raises:
        InvalidRequest: it says nothing of that kind.
    """
    kind = kind or name
    try:
        if isinstance(value, str) and kind in ("response_format", "choices"):
            value = json.loads(value)
        if kind in ("regex", "grammar") and not isinstance(value, str):
            raise InvalidRequest("expected a text")
        return _STRUCTURES[kind](value)
    except (TypeError, ValueError) as error:  # an InvalidRequest among them
        raise InvalidRequest(f"field {name!r} holds {str(value)[:40]!r}: {error}") from error


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
