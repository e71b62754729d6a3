"""The commands' parameters: those of a record of options, and those of single commands.

mlx-lm's names and defaults wherever it has one. ``takes`` gives a command the options of ``Flags``
or of a stage, which are written there once, in the place of one parameter.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from mlx_spec.cli.completion import OF_OPTIONS, one_of
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.options import Option, options_of

Command = Callable[..., None]


def truth(text: str) -> bool:
    """A truth value as mlx-lm takes it, True or T, False or F, in any case.

    Raises:
        InvalidRequest: another word.
    """
    word = text.lower()
    if word not in ("true", "t", "yes", "1", "false", "f", "no", "0"):
        raise InvalidRequest(f"[flags] --verbose {text!r}, expected True or False")
    return word in ("true", "t", "yes", "1")


def takes(
    place: str,
    record: type[Any],
    *,
    without: Collection[str] = (),
    only_given: bool = False,
    group: str = "",
) -> Callable[[Command], Command]:
    """Give a command a record's options, in the place of its parameter of the name ``place``.

    The command is called with a record there; with ``only_given`` it is called with a dictionary
    of what the user gave. typer reads a command's signature, so that is what is changed.

    Args:
        place: the command's own parameter.
        record: its options are taken, those of the class itself before inherited ones.
        without: names that are left out.
        only_given: as above.
        group: heading in help of options that have none.
    """
    inherited = {name for base in record.__mro__[1:] for name in inspect.get_annotations(base)}
    own = inspect.get_annotations(record).keys() - inherited
    known = options_of(record)
    options = [known[name] for name in sorted(known, key=lambda name: name not in own)]
    options = [one for one in options if one.name not in without]

    def change(command: Command) -> Command:
        @functools.wraps(command)
        def taking(**values: Any) -> None:
            found = {one.name: _value(one, values.pop(one.name)) for one in options}
            given = {name: value for name, value in found.items() if value is not None}
            command(**values, **{place: given if only_given else record(**given)})

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name == place:
                parameters += [_parameter(one, group, only_given) for one in options]
            else:
                parameters.append(parameter)
        taking.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        taking.__annotations__ = {one.name: one.annotation for one in parameters}
        return taking

    return change


def _parameter(one: Option, group: str, only_given: bool) -> inspect.Parameter:
    """An option as typer has it; where only what is given counts, None is the default of all."""
    several = tuple in one.kinds
    default = None if only_given or one.default == () else one.default
    shown: Any = default is not None and default is not False and default != ""
    if several and default is not None:
        default, shown = list(default), ", ".join(map(repr, default))
    kind: Any = list[str] if several else one.kinds[0]
    words = typer.Option(
        f"{one.flag}/{one.off}" if one.off else one.flag,
        *one.names,
        help=one.help,
        metavar=_metavar(one),
        show_default=shown,
        rich_help_panel=one.group or group or None,
        autocompletion=OF_OPTIONS.get(one.name) or (one_of(one.choices) if one.choices else None),
    )
    hint: Any = kind if default is not None else kind | None
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[hint, words],
    )


def _metavar(one: Option) -> str | None:
    if one.metavar or one.choices:
        return one.metavar or "|".join(one.choices)
    if tuple in one.kinds:
        return "WORD,WORD" if one.words else "TEXT"
    return None


def _value(one: Option, value: Any) -> Any:
    """What was given, as the record has it; words come one by one or with commas between them."""
    if tuple not in one.kinds or not value:
        return None if value == [] else value
    if not one.words:
        return tuple(value)
    return tuple(word.strip() for text in value for word in text.split(","))
