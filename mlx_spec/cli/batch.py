"""``mlx-spec batch``: a file of records through a model, resumable at any point.

Exit codes: 0 all records are fine; 1 some carry an ``error``; 2 bad input; 130 Ctrl-C, with what is
done on disk.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_spec.cli import options
from mlx_spec.cli.listening import listeners
from mlx_spec.cli.progress import Progress, figures, note, say, say_embedded, status
from mlx_spec.cli.report import statistics_lines
from mlx_spec.errors import InvalidRequest
from mlx_spec.flags import Flags

if TYPE_CHECKING:
    from mlx_spec.pipeline.live import Arrivals
    from mlx_spec.pipeline.process import Outcome, Output
    from mlx_spec.pipeline.stage import Stage

Input = Annotated[
    Path, typer.Argument(metavar="IN", help="JSON lines, CSV or Parquet; - is stdin.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Likewise; - is stdout.")]
PromptTemplate = Annotated[
    str | None,
    typer.Option("--prompt-template", help="Jinja over the record's fields; @FILE reads it."),
]
PromptField = Annotated[
    str | None,
    typer.Option(
        "--prompt-field",
        help="Field that is the prompt.  [default: prompt, else text, else the chat in messages]",
    ),
]
MessagesField = Annotated[
    str | None, typer.Option("--messages-field", help="Field of chat messages.")
]
OutputField = Annotated[str, typer.Option("--output-field", help="Field for the completion.")]
Unordered = Annotated[
    bool, typer.Option("--unordered", help="Write results as they come, not in the input's order.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped; else begin.")
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="As --resume, and run again what has an error; other options may be new.",
    ),
]
SamplingFields = Annotated[
    str | None,
    typer.Option(
        "--sampling-fields",
        metavar="NAMES",
        help="Fields that are a record's own options, e.g. max_tokens,temperature,stop.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin again if OUT exists.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N records.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help="jsonl, csv or parquet, where a name does not say it."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no statistics.")]


@dataclass(frozen=True)
class Job:
    """One run of the command, its options checked.

    Attributes:
        stage, flags: what is done with each record, and by which models.
        source, out: the files; ``-`` is stdin or stdout.
        formats: of ``source`` and ``out``.
        resume, overwrite, retry: what to do where ``out`` exists.
        limit: only the first so many records; None for all.
        quiet: no progress, no statistics.
        performance_log: folder for figures of the run, or None.
    """

    stage: Stage
    flags: Flags
    source: Path
    out: Path
    formats: tuple[str, str]
    resume: bool
    overwrite: bool
    retry: bool
    limit: int | None
    quiet: bool
    performance_log: Path | None

    @property
    def name(self) -> str:
        """What it is called while it runs: the command."""
        return "batch" if self.stage.kind == "generate" else self.stage.kind


@options.take_flags
def batch(
    source: Input,
    out: Out,
    *,
    flags: Flags,
    prompt_template: PromptTemplate = None,
    prompt_field: PromptField = None,
    messages_field: MessagesField = None,
    output_field: OutputField = "output",
    unordered: Unordered = False,
    sampling_fields: SamplingFields = None,
    resume: Resume = False,
    retry_failed: RetryFailed = False,
    overwrite: Overwrite = False,
    limit: Limit = None,
    format: Format = None,
    quiet: Quiet = False,
    performance_log: options.PerformanceLog = None,
) -> None:
    """Complete every record of a file; results are written as they come.

    A record that fails gets an "error" field and the run goes on. After a crash, --resume goes on
    where it stopped: the output is the one of an undisturbed run.
    """
    from mlx_spec.pipeline.records import format_of
    from mlx_spec.pipeline.stages.generate import GenerateText

    stage = GenerateText(
        prompt_template=prompt_template,
        prompt_field=prompt_field,
        messages_field=messages_field,
        output_field=output_field,
        sampling_fields=_names(sampling_fields),
    )
    if not quiet:
        say_embedded(flags)
    job = Job(
        stage=stage,
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
    raise typer.Exit(run_job(job))


def _names(given: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (given or "").split(",") if name.strip())


def run_job(job: Job) -> int:
    """Check, run, report; returns the exit code."""
    from mlx_spec.pipeline import records
    from mlx_spec.pipeline.backend import Models
    from mlx_spec.pipeline.process import process

    if "parquet" in job.formats:
        records.import_parquet()
    output, total = _open(job)
    if total is not None:
        total = min(total, job.limit or sys.maxsize)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(job.name, total, job.quiet))
        outcome = process(
            job.stage,
            job.flags,
            _arriving(job),
            output,
            Models(lambda text: status(text, job.quiet)),
            limit=job.limit,
            watch=progress,
            listeners=listeners(job.performance_log, job.flags, stack),
        )
    return _report(job, outcome)


def _arriving(job: Job) -> Arrivals:
    """The input's records; of stdin, with word of when there is none yet."""
    from mlx_spec.pipeline.live import arriving
    from mlx_spec.pipeline.records import STDIO, read_records

    found = read_records(job.source, job.formats[0])
    return arriving(found) if job.source == STDIO else found


def _report(job: Job, outcome: Outcome) -> int:
    """Statistics and what to do next; returns the exit code."""
    from mlx_spec.pipeline.records import STDIO

    if not job.quiet:
        for line in closing_lines(outcome, job.flags.drafter is not None):
            say(line)
    elif outcome.failed:  # the exit code alone would say nothing
        for line in outcome.failures.lines():
            note(line)
    if outcome.warning is not None:
        note(f"warning: {job.name}: {outcome.warning}")
    if outcome.interrupted:
        again = STDIO not in (job.source, job.out)
        kept = f"{job.out}.all.jsonl" if job.stage.drops else job.out
        hint = f"; go on with --resume: {kept} keeps what is done" if again else ""
        note(f"interrupted after {outcome.tally.written} records{hint}")
        return 130
    return 1 if outcome.failed else 0


def _open(job: Job) -> tuple[Output, int | None]:
    """The checked output, and the number of records of the input if it is known."""
    from mlx_spec.pipeline.checkpoint import Checkpoint
    from mlx_spec.pipeline.process import identity
    from mlx_spec.pipeline.records import STDIO, count, fingerprint
    from mlx_spec.pipeline.stdout import StdoutOutput

    source, out, seed = job.source, job.out, job.flags.seed
    if job.resume and STDIO in (source, out):
        raise InvalidRequest(
            "[batch] --resume needs files, since stdin and stdout cannot be read again: save the "
            "input to a file and begin with that"
        )
    if source != STDIO and source.resolve() == out.resolve():
        raise InvalidRequest(f"[batch] {source} is both input and output")
    digest = None if source == STDIO else fingerprint(source)
    total = None if source == STDIO else count(source, job.formats[0])
    if out == STDIO:
        return StdoutOutput(job.formats[1], seed, dropping=job.stage.drops), total
    mark = identity(job.stage, job.flags, digest)
    output = Checkpoint(
        out,
        job.formats[1],
        mark,
        seed,
        resume=job.resume,
        overwrite=job.overwrite,
        retry=job.retry,
        dropping=job.stage.drops,
    )
    return output, total


def closing_lines(outcome: Outcome, drafting: bool) -> list[str]:
    """Statistics at the end of a run."""
    tally = outcome.tally
    counts = [f"{tally.written} written"]
    if tally.skipped:
        counts.append(f"{tally.skipped} done before")
    if tally.dropped:
        counts.append(f"{tally.dropped} dropped")
    if outcome.failed:
        counts.append(f"{outcome.failed} with an error")
    # mlx-lm's rates, above, are of the time spent decoding or reading prompts.
    speed = figures(tally, outcome.stats, outcome.seconds)
    speed = f" ({speed}; by the clock)" if tally.written else ""
    lines = [f"Records: {', '.join(counts)}{speed}"]
    if outcome.stats.generation_tokens:
        lines = [*statistics_lines(outcome.stats, drafting), *lines]
    if tally.cut:
        lines.append(f"Length: {tally.cut} of {tally.written} cut at --max-tokens")
    return [*lines, *outcome.failures.lines()]
