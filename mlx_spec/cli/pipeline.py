"""``mlx-spec pipeline run CONFIG.toml`` and ``mlx-spec pipeline stages``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_spec.cli.commands import GroupedCommand
from mlx_spec.cli.file_options import FileOptions
from mlx_spec.cli.listening import listeners
from mlx_spec.cli.notes import note, saying, status
from mlx_spec.cli.parameters import takes
from mlx_spec.cli.sharded import follow_chain
from mlx_spec.cli.stage_run import closing_lines
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.progress import Progress, say

if TYPE_CHECKING:
    from mlx_spec.pipeline.config_file import PipelineConfig, StageConfig
    from mlx_spec.pipeline.process import Outcome

pipeline = typer.Typer(
    help="Chains of stages over a file of records.", no_args_is_help=True, rich_markup_mode=None
)
Config = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Input, output and stages.")]


@pipeline.command(cls=GroupedCommand)
@takes("files", FileOptions, without=("retry_failed", "format"))
@takes("given", Flags, without=("unordered",), only_given=True)
def run(config: Config, *, given: dict[str, Any], files: FileOptions) -> None:
    """Run the stages of a config one after another.

    What is given here goes before what the config says, for every stage. Every stage's output
    stays in the work folder; after a crash, --resume goes on where it stopped.
    """
    from mlx_spec.pipeline.backend import Models
    from mlx_spec.pipeline.chain import Chain
    from mlx_spec.pipeline.config_file import read_config

    checked = read_config(config, given)
    follow_chain(checked.stages)
    if not files.quiet:
        for unused in dict.fromkeys(entry.flags.unused for entry in checked.stages):
            if unused is not None:
                note(unused)
    chain = Chain(checked, resume=files.resume, overwrite=files.overwrite)
    shown: list[Progress] = []
    with ExitStack() as stack:

        def begin(entry: StageConfig, total: int | None) -> Progress:
            for bar in shown:
                bar.close()
            place = f"stage {len(shown) + 1} of {len(checked.stages)}, {entry.stage.kind}"
            shown.append(stack.enter_context(Progress(place, total, files.quiet)))
            return shown[-1]

        models = Models(lambda text: status(text, files.quiet), saying(files.quiet))
        log = listeners(files.performance_log, None, stack)
        outcomes = chain.run(models, begin, limit=files.limit, listeners=log)
    raise typer.Exit(_report(checked, outcomes, files.quiet))


def _report(config: PipelineConfig, outcomes: list[Outcome], quiet: bool) -> int:
    """Each stage's statistics, and where the output is; returns the exit code."""
    for entry, outcome in zip(config.stages, outcomes, strict=False):
        if not quiet:
            say(f"[{entry.name}]")
            for line in closing_lines(outcome, entry.flags.drafting):
                say(line)
        if outcome.warning is not None:
            note(f"warning: {entry.name}: {outcome.warning}")
    last = outcomes[-1]
    if last.interrupted:
        name = config.stages[len(outcomes) - 1].name
        note(f"interrupted in {name}; go on with --resume: {config.work} keeps what is done")
        return 130
    if not quiet:
        note(f"output in {config.output}; each stage's, with what it dropped, in {config.work}")
    return 1 if last.failed else 0


@pipeline.command()
def stages() -> None:
    """List the stages, their options and their prompts."""
    from mlx_spec.pipeline.options import options_of
    from mlx_spec.pipeline.stages import STAGES

    for kind, stage in STAGES.items():
        print(f"{kind}: {stage.about}")
        for option in options_of(stage).values():
            default = list(option.default) if isinstance(option.default, tuple) else option.default
            choices = " | ".join(option.choices)
            print(f"  {option.name} = {default!r}{f'  ({choices})' if choices else ''}")
            if option.help:
                print(f"      {option.help}")
        for name, prompt in stage.prompts().items():
            print(f"  prompt{f', {name}' if name else ''}:")
            print("".join(f"      | {line}\n" for line in prompt.splitlines()), end="")
        print()
