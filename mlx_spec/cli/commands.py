"""How the commands show themselves: in groups, their options too, and a word for a mistyped one.

Plain text with bold names, where there is a terminal, on purpose: rich's panels alone take longer
than all the rest of ``--help``.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup

from mlx_spec.cli.terminal import marked

GROUPS = {
    "Start here": ("chat", "generate", "serve"),
    "Over files": ("batch", "filter", "structure", "classify", "align", "pipeline"),
    "Models and speed": ("models", "bench", "train-draft", "report", "cache-prompt"),
    "This machine": ("doctor",),
}
ORDER = tuple(name for names in GROUPS.values() for name in names)
# What is shown to who types nothing: the first steps, as far as they are there.
FIRST_STEPS = {
    "chat": ("mlx-spec chat", "talk to a small real model, fetched on first use"),
    "generate": ('mlx-spec generate -p "..." -p "..."', "answer prompts, several together"),
    "serve": ("mlx-spec serve --model NAME", "answer programs, as OpenAI's API does"),
    "batch": ("mlx-spec batch IN OUT", "answer a file of prompts"),
}
_STEPS = 3


class GroupedCommand(TyperCommand):
    """A command whose help lists its options under the names of their groups."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever; who types a prompt as one types it elsewhere is told how it is given here."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            said = getattr(error, "message", "")
            if "unexpected extra argument" in said and "--prompt" in self._names(ctx):
                error.message = f"{said}; a prompt is given with -p"  # type: ignore[attr-defined]
            raise

    def _names(self, ctx: Any) -> set[str]:
        return {name for parameter in self.get_params(ctx) for name in parameter.opts}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then each group in the order of its first option."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                name = "Arguments" if argument else None
                name = name or getattr(parameter, "rich_help_panel", None) or "Other options"
                groups.setdefault(name, []).append(record)
        last = groups.pop("Other options", None)
        for name, records in [*groups.items(), *([("Other options", last)] if last else [])]:
            with formatter.section(_bold(name)):
                formatter.write_dl([(_bold(first), words) for first, words in records])


def _bold(text: str) -> str:
    """For a help text, which goes to stdout."""
    return marked(text, sys.stdout)


# What --ray may be followed by, for it not to be an argument.
_ADDRESS = re.compile(r"auto|local|ray://.*|[\w.\-\[\]:]+:\d+")


class RayCommand(GroupedCommand):
    """A command that takes ``--ray`` alone, too; in typer no value may be left out."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        given = []
        for word, following in itertools.pairwise([*args, ""]):
            given.append(word)
            if word == "--ray" and not _ADDRESS.fullmatch(following):
                given.append("auto")
        return super().make_context(info_name, given, parent, **extra)


class Commands(TyperGroup):
    """The commands; ``mlx-spec help COMMAND`` is ``mlx-spec COMMAND --help``."""

    extra: ClassVar[tuple[TyperCommand, ...]] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for command in self.extra:
            self.add_command(command)

    @classmethod
    def including(cls, commands: Iterable[TyperCommand]) -> type[Commands]:
        """The group with commands that are not made from functions."""
        return type(cls.__name__, (cls,), {"extra": tuple(commands)})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever; who gives a command's option without the command is told what is missing."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if "No such option" in getattr(error, "message", ""):
                error.message += "; options follow a command: mlx-spec generate ..."  # type: ignore[attr-defined]
                error.possibilities = None  # type: ignore[attr-defined]
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names in the order in which a user meets them; those not foreseen at the end."""
        return sorted(self.commands, key=lambda name: (*ORDER, name).index(name))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands in their groups."""
        left = self.list_commands(ctx)
        groups = [(title, [n for n in names if n in left]) for title, names in GROUPS.items()]
        groups.append(("Others", [name for name in left if name not in ORDER]))
        width = max(map(len, left))
        for title, names in groups:
            found = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(_bold(f"{name:{width}}"), c.get_short_help_str(200)) for name, c in found if c]
            if rows:
                with formatter.section(_bold(title)):
                    formatter.write_dl(rows)

    def welcome(self, version: str) -> str:
        """What somebody reads who typed the name alone."""
        steps = [step for name, step in FIRST_STEPS.items() if name in self.commands][:_STEPS]
        width = max(len(line) for line, _ in steps)
        lines = [f"  {_bold(f'{line:{width}}')}   {about}" for line, about in steps]
        return "\n".join(
            [
                f"mlx-spec {version}: many prompts at once, drafts guessed ahead, and the text is",
                "token for token the model's own.",
                "",
                *lines,
                "",
                "`mlx-spec --help` lists all commands, `mlx-spec models` what is at hand.",
            ]
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant; for a name that begins several or one, they are named."""
        if args[0] == "help" and "help" not in self.commands:
            args = [*args[1:2], "--help"]
            if len(args) == 1:
                print(ctx.get_help())
                ctx.exit()
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            near = [name for name in self.commands if name.startswith(args[0])]
            if near and hasattr(error, "message"):
                error.message = f"No such command {args[0]!r}. Did you mean {', '.join(near)}?"
            elif " " in args[0] and hasattr(error, "message"):
                error.message = "No command before the prompt: mlx-spec generate -p '...'"
            raise
