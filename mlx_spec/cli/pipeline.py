"""``mlx-spec pipeline run CONFIG.toml`` and ``mlx-spec pipeline stages``."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_spec.cli.commands import RayCommand
from mlx_spec.cli.completion import stage_names
from mlx_spec.cli.file_options import FileOptions
from mlx_spec.cli.listening import listeners
from mlx_spec.cli.notes import note, saying, status
from mlx_spec.cli.parameters import takes
from mlx_spec.cli.sharded import follow_chain, refuse_both
from mlx_spec.cli.stage_run import closing_lines
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.progress import say

if TYPE_CHECKING:
    from mlx_spec.pipeline.backend import Models
    from mlx_spec.pipeline.chain import Work
    from mlx_spec.pipeline.checkpoint import Checkpoint
    from mlx_spec.pipeline.config_file import PipelineConfig, StageConfig
    from mlx_spec.pipeline.process import Outcome, Watch
    from mlx_spec.pipeline.records import Reader

pipeline = typer.Typer(
    help="Chains of stages over a file of records.", no_args_is_help=True, rich_markup_mode=None
)
Config = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Input, output and stages.")]


Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="STAGE",
        help="Run this stage alone, by name, number or kind, on what those before it gave.",
        autocompletion=stage_names,
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STAGE",
        help="Run this stage and those behind it again.",
        autocompletion=stage_names,
    ),
]


@pipeline.command(cls=RayCommand)
@takes("files", FileOptions, without=("retry_failed", "format"))
@takes("given", Flags, without=("unordered",), only_given=True)
def run(
    config: Config,
    *,
    only: Only = None,
    begin_at: From = None,
    given: dict[str, Any],
    files: FileOptions,
) -> None:
    """Run the stages of a config one after another.

    What is given here goes before what the config says, for every stage. Every stage's output
    stays in the work folder; after a crash, --resume goes on where it stopped.
    """
    from mlx_spec.pipeline.backend import Models
    from mlx_spec.pipeline.chain import Chain
    from mlx_spec.pipeline.chain_progress import ChainProgress
    from mlx_spec.pipeline.config_file import read_config

    checked = read_config(config, given)
    part = _part(checked, only, begin_at)
    running = checked.stages if part is None else checked.stages[part.start : part.stop]
    for entry in running:
        refuse_both(files.ray, entry.flags.shard)
    follow_chain(running)
    if not files.quiet:
        for unused in dict.fromkeys(entry.flags.unused for entry in running):
            if unused is not None:
                note(unused)
    chain = Chain(checked, resume=files.resume, overwrite=files.overwrite, part=part)
    with ExitStack() as stack:
        names = [entry.name for entry in checked.stages]
        progress = stack.enter_context(ChainProgress(names, files.quiet))
        for place in range(len(names)):
            if part is not None and place not in part:
                progress.skip(place, "done before" if place < part.start else "not asked for")

        def loading(text: str) -> AbstractContextManager[None]:
            return progress.loading(text, lambda text: status(text, files.quiet))

        models = Models(loading, saying(files.quiet))
        work = _here(models, files, stack) if files.ray is None else _over_ray(models, files, stack)
        outcomes = chain.run(work, progress.begin, limit=files.limit)
    raise typer.Exit(_report(checked, part, outcomes, files.quiet))


def _here(models: Models, files: FileOptions, stack: ExitStack) -> Work:
    """Stages run in this process."""
    from mlx_spec.pipeline.process import process

    log = listeners(files.performance_log, None, stack)

    def work(
        entry: StageConfig, read: Reader, output: Checkpoint, limit: int | None, watch: Watch
    ) -> Outcome:
        run = partial(process, entry.stage, entry.flags, read(), output, models)
        return run(limit=limit, watch=watch, listeners=log)

    return work


def _over_ray(models: Models, files: FileOptions, stack: ExitStack) -> Work:
    """Stages that ask a model run on all machines, which are joined once for all of them."""
    from mlx_spec.pipeline.ray_cluster import joined
    from mlx_spec.pipeline.ray_process import RayOptions, process_over_ray

    here, address = _here(models, files, stack), files.ray or ""
    stack.enter_context(joined(address, files.ray_workers))

    def work(
        entry: StageConfig, read: Reader, output: Checkpoint, limit: int | None, watch: Watch
    ) -> Outcome:
        if entry.stage.uses == "nothing":
            return here(entry, read, output, limit, watch)
        options = RayOptions(address, files.ray_workers, limit)
        return process_over_ray(entry.stage, entry.flags, read, output, options, watch)

    return work


def _part(config: PipelineConfig, only: str | None, begin_at: str | None) -> range | None:
    """Which stages run; None for all.

    Raises:
        InvalidRequest: both options, or a stage that is none.
    """
    if only is not None and begin_at is not None:
        raise InvalidRequest("[pipeline] --only and --from: give one of them")
    if only is not None:
        place = config.find(only)
        return range(place, place + 1)
    return None if begin_at is None else range(config.find(begin_at), len(config.stages))


def _report(
    config: PipelineConfig, part: range | None, outcomes: list[Outcome], quiet: bool
) -> int:
    """Each stage's statistics, and where the output is; returns the exit code."""
    part = part or range(len(config.stages))
    stages = config.stages[part.start : part.stop]
    for entry, outcome in zip(stages, outcomes, strict=False):
        if not quiet:
            say(f"[{entry.name}]")
            for line in closing_lines(outcome, entry.flags.drafting):
                say(line)
        if outcome.warning is not None:
            note(f"warning: {entry.name}: {outcome.warning}")
    last = outcomes[-1]
    if last.interrupted:
        name = stages[len(outcomes) - 1].name
        note(f"interrupted in {name}; go on with --resume: {config.work} keeps what is done")
        return 130
    if not quiet and part.stop < len(config.stages):
        later = config.stages[part.stop].name
        note(f"{stages[-1].name} is done, in {config.work}; --from {later} goes on behind it")
    elif not quiet:
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
