"""What the texts must be: JSON, a match, one of some choices, a grammar's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from mlx_spec.config import Structure
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.options import option
from mlx_spec.text_files import read_text

_FILES = (".json", ".lark", ".gbnf", ".ebnf", ".txt")
_structure = partial(option, group="Structure")


def _at(text: str) -> bool:
    return text.startswith("@")


@dataclass(frozen=True)
class StructureFlags:
    """What the texts must be; one of them at most."""

    json_schema: str | None = _structure(
        None, "The text is JSON that this schema describes.", metavar="JSON|FILE", is_path=_at
    )
    regex: str | None = _structure(None, "The text matches this expression, as a whole.")
    choices: tuple[str, ...] = _structure((), "The text is one of these.", words=True)
    grammar: str | None = _structure(
        None,
        "The text is of this grammar, in Lark's or llama.cpp's syntax.",
        metavar="TEXT|FILE",
        is_path=_at,
    )

    def read_structure(self) -> None:
        """Read files: their texts count for a resume, not their names.

        Raises:
            InvalidRequest: one cannot be read, or two of the options are given.
        """
        for name in ("json_schema", "grammar"):
            if getattr(self, name):
                object.__setattr__(self, name, text_or_file(getattr(self, name), f"--{name}"))
        if any(not word for word in self.choices):
            raise InvalidRequest("[flags] --choices has an empty text among its texts")
        given = [name for name in ("json_schema", "regex", "choices", "grammar") if self._has(name)]
        if len(given) > 1:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InvalidRequest(f"[flags] {flags} given; one says what the text must be")
        assert self.structure is None or given

    def _has(self, name: str) -> bool:
        return getattr(self, name) not in (None, ())

    @cached_property
    def structure(self) -> Structure | None:
        """The constraint."""
        if self.json_schema is not None:
            return Structure.json_schema(self.json_schema)
        if self.regex is not None:
            return Structure.regex(self.regex)
        if self.grammar is not None:
            return Structure.grammar(self.grammar)
        return Structure.choices(self.choices) if self.choices else None


def text_or_file(value: str, flag: str) -> str:
    """A text as it is, or of a file: ``@FILE``, or a name that ends as such files' do.

    Raises:
        InvalidRequest: the file cannot be read.
    """
    flag = flag.replace("_", "-")
    named = "\n" not in value and not value.lstrip().startswith(("{", "start", "root"))
    if _at(value) or (named and value.endswith(_FILES)):
        path = Path(value.removeprefix("@"))
        return read_text(path, f"[flags] {flag} {path}")
    return value
