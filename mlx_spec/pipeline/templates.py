"""Prompt templates: Jinja over a record's fields, in a sandbox.

A field that the record lacks is an error that names both, never an empty text in a prompt. The
template comes from the user and the fields from data, so neither may run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from mlx_spec.errors import InvalidRequest

_ENVIRONMENT = SandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
)


class PromptTemplate:
    """A compiled template.

    Args:
        source: Jinja source, or ``@file`` to read it from.
        name: how errors call it.

    Raises:
        InvalidRequest: a syntax error (with its line), or a file that cannot be read.
    """

    def __init__(self, source: str, name: str = "template") -> None:
        self.source = _read(source, name) if source.startswith("@") else source
        self._name = name
        try:
            self._template = _ENVIRONMENT.from_string(self.source)
        except TemplateSyntaxError as error:
            raise InvalidRequest(f"[{name}] line {error.lineno}: {error.message}") from error

    def render(self, fields: Mapping[str, Any], **more: Any) -> str:
        """The text for one record.

        A stage's own variables (``more``) go before fields of the same name; ``record`` holds all
        fields, whatever they are called.

        Raises:
            InvalidRequest: a field that is not there, or an expression that fails.
        """
        try:
            return self._template.render({**fields, **more, "record": fields})
        except UndefinedError as error:
            names = ", ".join(map(str, fields)) or "none"
            message = f"[{self._name}] {error.message}; the record's fields are: {names}"
            raise InvalidRequest(message) from error
        except Exception as error:  # whatever an expression over foreign data may raise
            message = f"[{self._name}] {type(error).__name__}: {error}"
            raise InvalidRequest(message) from error


def _read(source: str, name: str) -> str:
    path = Path(source[1:]).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"[{name}] {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"[{name}] {path}: not UTF-8") from error
