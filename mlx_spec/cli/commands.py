"""How the commands show themselves: options in groups, and a word for a mistyped command.

Plain text on purpose: rich's panels alone take longer than all the rest of ``--help``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup

ORDER = (
    "generate",
    "serve",
    "batch",
    "filter",
    "structure",
    "classify",
    "align",
    "pipeline",
    "train-draft",
    "bench",
    "report",
    "doctor",
)


class GroupedCommand(TyperCommand):
    """A command whose help lists its options under the names of their groups."""

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
            with formatter.section(name):
                formatter.write_dl(records)


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

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names in the order in which a user meets them; those not foreseen at the end."""
        return sorted(self.commands, key=lambda name: (*ORDER, name).index(name))

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
            raise
