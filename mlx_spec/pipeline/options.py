"""What an option is: a field of a frozen dataclass, with the words and names it goes by.

``Flags`` and every stage are records of options. Each option is written once, as a field: its name
is a table's key and, with dashes, the flag; its default is the field's; ``option`` adds what people
read. The command line, config files, ``collect``, listings and docs/options.md ask ``options_of``.
Imports nothing heavy: help must be instant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Option:
    """One option of a record.

    Attributes:
        name: the field, and the key in a config's table.
        kinds: of its values: some of str, int, float and bool; tuple for a list of texts.
        default: its value where none is given; None where that means something of its own.
        help: what it means, in a sentence.
        group: heading in help; empty for the command's own.
        names: further spellings on the command line.
        off: for a truth value, the flag that says no; empty where there is none.
        metavar: what stands for its value in help; empty for its kind.
        choices: all values; a stage refuses others.
        words: a list that may be given with commas between its words.
        parse: from what is given to what is meant; raises InvalidRequest.
        sets: (class, field) of the engine's options that its value goes to, if it is one of them.
        changes_text: whether a run that goes on must be given it as before.
        is_path: whether a text in a config is a path beside the config.
    """

    name: str
    kinds: tuple[type[Any], ...]
    default: Any
    help: str = ""
    group: str = ""
    names: tuple[str, ...] = ()
    off: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    words: bool = False
    parse: Callable[[Any], Any] | None = None
    sets: tuple[type[Any], str] | None = None
    changes_text: bool = True
    is_path: Callable[[str], bool] = lambda text: False

    @property
    def flag(self) -> str:
        """Its main name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def located(self, text: str, folder: Path) -> str:
        """A text of a config that lies in ``folder``, as a path where it is one."""
        if not self.is_path(text):
            return text
        mark = "@" if text.startswith("@") else ""
        return mark + str(folder / Path(text.removeprefix("@")).expanduser())


def option(default: Any, help: str, *names: str, **about: Any) -> Any:
    """A field that is an option; ``about`` are attributes of :class:`Option`."""
    return field(default=default, metadata={"help": help, "names": names, **about})


def options_of(record: type[Any]) -> dict[str, Option]:
    """All options of a dataclass, by name and in order; plain fields are options without words."""
    hints = get_type_hints(record)
    return {
        item.name: Option(
            name=item.name,
            kinds=_kinds(hints[item.name]),
            default=None if item.default is MISSING else item.default,
            **item.metadata,
        )
        for item in fields(record)
    }


def _kinds(hint: Any) -> tuple[type[Any], ...]:
    """The types in ``str | None`` and the like; a list of texts where there is none of ours."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(kind for kind in (str, int, float, bool) if kind in parts) or (tuple,)
