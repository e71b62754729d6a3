"""What a template sees of a record, where Jinja's own rules would put Python into a prompt.

- A field wins over a method of the same name (``meta.items``), and a method that is not called is
  not there.
- null is false, equals ``none``, takes a ``default()``, and is an error where it is printed.
- ``tojson`` writes JSON as it is, not as HTML needs it.
- What is no value (a function, a generator) is not printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateRuntimeError, Undefined, UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_DATA = (str, int, float, Mapping, list, tuple)


class NullField(UndefinedError):
    """A null was printed, or used as a value."""


class _Null(StrictUndefined):
    """null in a record: false, like ``none``, and an error wherever its value counts."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return other is None or isinstance(other, _Null)

    def __ne__(self, other: object) -> bool:  # type: ignore[override]
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(None)

    def __repr__(self) -> str:  # inside a list that is printed
        return str(self)


class _Method(StrictUndefined):
    """A method of a value: may be called, and is otherwise a field that is not there."""

    __slots__ = ("method",)

    def __init__(self, obj: Any, name: str, method: Any) -> None:
        super().__init__(obj=obj, name=name)
        self.method = method


def as_fields(value: Any, name: str = "") -> Any:
    """A copy of a record in which every null knows its name.

    Args:
        value: the record as JSON has it (``plain``), or what is in it.
        name: where it is, for errors.
    """
    if value is None:
        hint = (
            f"field {name!r} is null; test it with {{% if {name} %}} or give it a default()"
            if name
            else "a value is null"
        )
        return _Null(hint=hint, exc=NullField)
    if isinstance(value, Mapping):
        start = f"{name}." if name else ""
        return {key: as_fields(one, f"{start}{key}") for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_fields(one, f"{name}[{index}]") for index, one in enumerate(value)]
    return value


class RecordEnvironment(ImmutableSandboxedEnvironment):
    """Jinja for records; see the module."""

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            autoescape=False,
            finalize=_printable,
        )
        self.filters["tojson"] = _to_json
        self.tests["none"] = lambda value: value is None or isinstance(value, _Null)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute``: the field, where there is one."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        found = super().getattr(obj, attribute)
        if not isinstance(obj, _DATA) or not callable(found) or isinstance(found, Undefined):
            return found
        return _Method(obj, attribute, found)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``: never a method."""
        if isinstance(obj, Mapping) and isinstance(argument, str):
            return obj[argument] if argument in obj else self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call it, a method of a value included."""
        if isinstance(obj, _Method):
            obj = obj.method
        return super().call(context, obj, *args, **kwargs)


def _printable(value: Any) -> Any:
    """What may stand in a prompt.

    Raises:
        UndefinedError: it is null.
        TemplateRuntimeError: it is a function, a generator or another thing of Python's.
    """
    if value is None:
        return as_fields(None)
    if isinstance(value, (*_DATA, Undefined)):
        return value
    raise TemplateRuntimeError(f"a {type(value).__name__} cannot be printed; call it, or use list")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """A value as JSON; the options are those that chat templates know."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_null_as_none,
    )


def _null_as_none(value: Any) -> None:
    if not isinstance(value, _Null):
        str(value)  # raises the error of a field that is not there
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")
