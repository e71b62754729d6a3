"""``mlx-spec filter | structure | classify | align IN OUT``: one stage over a file, as ``batch``.

A stage's options are those of its dataclass: names, defaults and help stand there alone. They are
read when a command is asked for, so that the list of commands needs none of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from mlx_spec.cli import batch as files
from mlx_spec.cli import options
from mlx_spec.cli.commands import GroupedCommand
from mlx_spec.cli.progress import say_embedded
from mlx_spec.flags import Flags

if TYPE_CHECKING:
    from mlx_spec.pipeline.stage import Stage

KINDS = ("filter", "structure", "classify", "align")


class StageCommand(GroupedCommand):
    """A stage as a command; what it takes is found out when it is run or asked for help."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)

    def get_short_help_str(self, limit: int = 45) -> str:
        """What it does, for the list of commands."""
        return _about(_stage(str(self.name)))

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """The whole command's."""
        return self._whole.make_context(info_name, args, parent, **extra)

    @cached_property
    def _whole(self) -> Any:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        stage = _stage(str(self.name))
        app.command(self.name, cls=GroupedCommand, help=_help(stage))(_command(stage))
        return typer.main.get_command(app)


def _stage(kind: str) -> type[Stage]:
    from mlx_spec.pipeline.stages import STAGES

    return STAGES[kind]


def _about(stage: type[Stage]) -> str:
    """What it does, as a sentence."""
    return f"{stage.about[0].upper()}{stage.about[1:]}."


def _help(stage: type[Stage]) -> str:
    return (
        f'{_about(stage)}\n\nA record that fails gets an "error" field and the run goes on. After '
        "a crash, --resume goes on where it stopped."
    )


def _command(stage: type[Stage]) -> Callable[..., None]:
    """The function behind a stage's command."""

    def command(
        source: files.Input,
        out: files.Out,
        *,
        own: Any,
        flags: Flags,
        unordered: files.Unordered = False,
        resume: files.Resume = False,
        retry_failed: files.RetryFailed = False,
        overwrite: files.Overwrite = False,
        limit: files.Limit = None,
        format: files.Format = None,
        quiet: files.Quiet = False,
        performance_log: options.PerformanceLog = None,
    ) -> None:
        from mlx_spec.pipeline.records import format_of

        job = files.Job(
            stage=stage(**own),
            flags=replace(flags, unordered=unordered),
            source=source,
            out=out,
            formats=(format_of(source, format), format_of(out, format)),
            resume=resume or retry_failed,
            overwrite=overwrite,
            retry=retry_failed,
            limit=limit,
            quiet=quiet,
            performance_log=performance_log,
        )
        if not quiet:
            say_embedded(flags)
        raise typer.Exit(files.run_job(job))

    def taking(**given: Any) -> None:
        own = {item.name: _value(item, given.pop(item.name)) for item in fields(stage)}
        command(own=own, **given)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        parameters += _parameters(stage) if parameter.name == "own" else [parameter]
    taking.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return options.take_flags(taking)


def _parameters(stage: type[Stage]) -> list[inspect.Parameter]:
    """A stage's options as typer's; its own before those that several have."""
    hints, own = get_type_hints(stage), inspect.get_annotations(stage)
    return [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=list(item.default) if isinstance(item.default, tuple) else item.default,
            annotation=_annotation(item, hints[item.name], stage.kind),
        )
        for item in sorted(fields(stage), key=lambda item: item.name not in own)
    ]


def _annotation(item: Field[Any], hint: Any, kind: str) -> Any:
    default: Any = item.default
    about, flag = item.metadata, f"--{item.name.replace('_', '-')}"
    shown: Any = default not in ("", False, ())
    metavar = "|".join(about["choices"]) or None
    if isinstance(default, tuple):
        hint = list[str]
        metavar = "WORD,WORD" if about["words"] else "TEXT"
        shown = shown and ", ".join(map(repr, default))
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if hint is bool else flag,
        help=about["help"],
        metavar=metavar,
        show_default=shown,
        rich_help_panel=f"What {kind} does",
    )
    return Annotated[hint, option]


def _value(item: Field[Any], value: Any) -> Any:
    """What was given for an option; words come one by one or with commas between them."""
    if not isinstance(value, (list, tuple)):
        return value
    if not item.metadata["words"]:
        return tuple(value)
    return tuple(word.strip() for one in value for word in one.split(","))
