"""``mlx-spec batch | filter | structure | classify | align IN OUT``: one stage over a file.

A stage's options are those of its dataclass: names, defaults and help stand there alone. They are
read when a command is asked for, so that the list of commands needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_spec.cli.commands import GroupedCommand, RayCommand
from mlx_spec.cli.file_options import FileOptions
from mlx_spec.cli.parameters import takes
from mlx_spec.pipeline.flags import Flags

if TYPE_CHECKING:
    from mlx_spec.pipeline.stage import Stage

KINDS = {"batch": "generate"} | {
    kind: kind for kind in ("filter", "structure", "classify", "align")
}
"""The commands, and the stage that each of them runs."""

Input = Annotated[
    Path, typer.Argument(metavar="IN", help="JSON lines, CSV or Parquet; - is stdin.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Likewise; - is stdout.")]


class StageCommand(GroupedCommand):
    """A stage as a command; what it takes is found out when it is run or asked for help."""

    def __init__(self, name: str) -> None:
        super().__init__(name)

    def get_short_help_str(self, limit: int = 45) -> str:
        """What it does, for the list of commands."""
        return _about(self._stage)

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        return self._whole.make_context(info_name, args, parent, **extra)

    @property
    def _stage(self) -> type[Stage]:
        from mlx_spec.pipeline.stages import STAGES

        return STAGES[KINDS[str(self.name)]]

    @cached_property
    def _whole(self) -> Any:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        make = app.command(self.name, cls=RayCommand, help=_help(self._stage))
        make(_command(str(self.name), self._stage))
        return typer.main.get_command(app)


def _about(stage: type[Stage]) -> str:
    """What it does, as a sentence."""
    return f"{stage.about[0].upper()}{stage.about[1:]}."


def _help(stage: type[Stage]) -> str:
    return (
        f'{_about(stage)}\n\nA record that fails gets an "error" field and the run goes on. After '
        "a crash, --resume goes on where it stopped: the output is the one of an undisturbed run."
    )


def _command(name: str, stage: type[Stage]) -> Callable[..., None]:
    """The function behind a stage's command."""

    @takes("files", FileOptions)
    @takes("flags", Flags)
    @takes("own", stage, group=f"What {name} does")
    def command(source: Input, out: Out, *, own: Any, flags: Flags, files: FileOptions) -> None:
        from mlx_spec.cli.stage_run import StageRun, run_stage

        raise typer.Exit(run_stage(StageRun(name, own, flags, source, out, files)))

    return command
