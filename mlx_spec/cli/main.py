"""The ``mlx-spec`` command: its sub-commands, and how every error leaves the process.

Exit codes: 0 done; 1 a check failed (``--compare``, a text in ``bench``), some records of a batch
failed, or the reader of our output went away; 2 bad input, or a file or disk that does not do what
is asked, said on one line; 130 interrupted (Ctrl-C), 143 by SIGTERM.

It imports no mlx: help must be instant.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any, cast

import typer

from mlx_spec import __version__, interrupts
from mlx_spec.cli.bench import bench
from mlx_spec.cli.cache_prompt import cache_prompt
from mlx_spec.cli.chat import chat
from mlx_spec.cli.commands import Commands, GroupedCommand
from mlx_spec.cli.doctor import doctor
from mlx_spec.cli.generate import generate
from mlx_spec.cli.models import models
from mlx_spec.cli.notes import note
from mlx_spec.cli.pipeline import pipeline
from mlx_spec.cli.report import report
from mlx_spec.cli.serve import serve
from mlx_spec.cli.stages import KINDS, StageCommand
from mlx_spec.cli.terminal import (
    RED,
    discard,
    marked,
    open_standard_files,
    take_every_letter,
)
from mlx_spec.cli.train_draft import train_draft
from mlx_spec.errors import MlxSpecError

app = typer.Typer(
    name="mlx-spec",
    help="Lossless batched speculative decoding for any MLX model.",
    cls=Commands.including(StageCommand(name) for name in KINDS),
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # As wide as the terminal, up to what is read well.
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command(cls=GroupedCommand)(chat)
app.command(cls=GroupedCommand)(generate)
app.command("cache-prompt", cls=GroupedCommand)(cache_prompt)
app.command("train-draft", cls=GroupedCommand)(train_draft)
app.command(cls=GroupedCommand)(bench)
app.command(cls=GroupedCommand)(serve)
app.add_typer(pipeline, name="pipeline")
for command in (models, report, doctor):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mlx-spec {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Lossless batched speculative decoding for any MLX model."""
    if context.invoked_subcommand is None:
        print(cast("Commands", context.command).welcome(__version__))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; ``arguments`` are those of the process unless given.

    Returns:
        The exit code. Errors that are ours are one line on stderr, never a traceback.
    """
    open_standard_files()
    take_every_letter()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            with interrupts.listening():
                code = _written(_run(arguments))
        except KeyboardInterrupt:  # pressed again at the very end
            code = interrupts.INTERRUPTED
        return interrupts.exit_code(code)


def _run(arguments: list[str] | None) -> int:
    try:
        app(args=arguments, prog_name="mlx-spec")
    except KeyboardInterrupt:
        return interrupts.INTERRUPTED
    except SystemExit as leaving:  # how typer reports its own errors, a full pipe included
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except Exception as error:
        if _was_interrupted(error):
            return interrupts.INTERRUPTED
        if isinstance(error, MlxSpecError):
            _say(str(error))
        elif isinstance(error, OSError) and error.strerror:  # one that nobody on the way foresaw
            _say(f"{error.filename}: {error.strerror}" if error.filename else _of_stdout(error))
        else:
            raise
        return 2
    return 0


def _say(error: str) -> None:
    note(f"{marked('error:', sys.stderr, RED)} {' '.join(error.split())}")


def _of_stdout(error: OSError) -> str:
    """Of an error without a file, which all files that we open ourselves would have."""
    if not _flushes():
        discard(sys.stdout)
        return f"stdout: {error.strerror}"
    return f"{error.strerror}"


def _flushes() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _written(code: int) -> int:
    """The exit code, of which what stdout still holds is part: python would fail over it later."""
    if sys.stdout is None:
        return code
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left, which needs no word
        discard(sys.stdout)
        return code or 1
    except OSError as error:
        discard(sys.stdout)
        _say(f"stdout: {error.strerror}")
        return code or 2
    return code


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: Python and libraries wrap it, as while they import."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line, without the place in our sources that Python would name."""
    note(f"warning: {' '.join(str(message).split())}")
