"""Prompt templates: Jinja over a record's fields, in a sandbox.

A field that the record lacks, or that is null, is an error that names it, never an empty text or
the word "None" in a prompt. The template comes from the user and the fields from data, so neither
may run code, and no name in the data hides what a stage or the template itself means.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError, UndefinedError

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.template_values import NullField, RecordEnvironment, as_fields
from mlx_spec.pipeline.values import plain
from mlx_spec.text_files import read_text

_ENVIRONMENT = RecordEnvironment()


class PromptTemplate:
    """A compiled template.

    Args:
        source: Jinja source, or ``@file`` to read it from.
        name: how errors call it.

    Raises:
        InvalidRequest: a syntax error (with its line), or a file that cannot be read.
    """

    def __init__(self, source: str, name: str = "template") -> None:
        self.source = _read(source[1:], name) if source.startswith("@") else source
        self._name = name
        try:
            self._template = _ENVIRONMENT.from_string(self.source)
        except TemplateSyntaxError as error:
            raise InvalidRequest(f"[{name}] line {error.lineno}: {error.message}") from error
        except Exception as error:  # nested too deep for Python's own compiler
            raise InvalidRequest(f"[{name}] {type(error).__name__}: {error}") from error

    def render(self, fields: Mapping[str, Any], **more: Any) -> str:
        """The text for one record.

        Args:
            fields: the record. ``record`` is all of it, for names with blanks and names that
                ``more`` takes.
            more: the stage's own variables; a field of the same name does not hide them.

        Raises:
            InvalidRequest: a field that is not there or null, or an expression that fails.
        """
        try:
            record = as_fields(plain(fields))
            return self._template.render({**record, **more, "record": record})
        except NullField as error:
            raise InvalidRequest(f"[{self._name}] {error.message}") from error
        except UndefinedError as error:
            names = ", ".join(map(str, fields)) or "none"
            message = f"[{self._name}] {error.message}; the record's fields are: {names}"
            raise InvalidRequest(message) from error
        except Exception as error:  # whatever an expression over foreign data may raise
            message = f"[{self._name}] {type(error).__name__}: {error}"
            raise InvalidRequest(message) from error


def _read(file: str, name: str) -> str:
    return read_text(Path(file), f"[{name}] {file}")
