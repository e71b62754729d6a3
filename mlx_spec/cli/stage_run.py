"""One stage over a file: checked, run and reported, as ``mlx-spec batch`` and the stages do.

Exit codes: 0 all records are fine; 1 some carry an ``error``; 2 bad input; 130 Ctrl-C, with what is
done on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_spec.cli.api_files import recognised
from mlx_spec.cli.listening import listeners
from mlx_spec.cli.notes import note, say_models, saying, status
from mlx_spec.cli.sharded import follow_where_told, refuse_both
from mlx_spec.cli.statistics import statistics_lines
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.progress import Progress, figures, say

if TYPE_CHECKING:
    from mlx_spec.cli.file_options import FileOptions
    from mlx_spec.pipeline.flags import Flags
    from mlx_spec.pipeline.live import Arrivals
    from mlx_spec.pipeline.process import Outcome, Output
    from mlx_spec.pipeline.records import Record
    from mlx_spec.pipeline.stage import Stage


@dataclass(frozen=True)
class StageRun:
    """One run of a stage's command, its options checked.

    Attributes:
        name: the command's.
        stage, flags: what is done with each record, and by which models.
        source, out: the files; ``-`` is stdin or stdout.
        files: what to read, and what to do where ``out`` exists.
    """

    name: str
    stage: Stage
    flags: Flags
    source: Path
    out: Path
    files: FileOptions

    @cached_property
    def formats(self) -> tuple[str, str]:
        """Of ``source`` and ``out``.

        Raises:
            InvalidRequest: a name that says none, or one that is none.
        """
        from mlx_spec.pipeline.records import format_of

        return format_of(self.source, self.files.format), format_of(self.out, self.files.format)


def run_stage(run: StageRun) -> int:
    """Check, run, report; returns the exit code."""
    refuse_both(run.files.ray, run.flags.shard)
    follow_where_told(run.flags, generates=run.stage.uses == "generate")
    formats = run.formats
    if not run.files.quiet:
        say_models(run.flags)
    from mlx_spec.pipeline import records  # which takes a second, with all of mlx behind it

    if "parquet" in formats:
        records.import_parquet()
    digest, total = _look(run)
    found = records.read_records(run.source, formats[0])
    stage, found = recognised(run.stage, found, formats[1], run.files.quiet)
    run = replace(run, stage=stage)
    output = _open(run, digest)
    if total is not None:
        total = min(total, run.files.limit or sys.maxsize)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(run.name, total, run.files.quiet))
        if run.files.ray is not None:
            outcome = _over_ray(run, output, progress)
        else:
            outcome = _here(run, _arriving(run, found), output, progress, stack)
    return _report(run, outcome)


def _here(
    run: StageRun, found: Arrivals, output: Output, progress: Progress, stack: ExitStack
) -> Outcome:
    from mlx_spec.pipeline.backend import Models
    from mlx_spec.pipeline.process import process

    return process(
        run.stage,
        run.flags,
        found,
        output,
        Models(lambda text: status(text, run.files.quiet), saying(run.files.quiet)),
        limit=run.files.limit,
        watch=progress,
        listeners=listeners(run.files.performance_log, run.flags, stack),
    )


def _over_ray(run: StageRun, output: Output, progress: Progress) -> Outcome:
    from mlx_spec.pipeline.ray_process import RayOptions, process_over_ray
    from mlx_spec.pipeline.records import STDIO, read_records

    assert run.files.ray is not None
    if run.source == STDIO:
        raise InvalidRequest("[ray] --ray needs a file as input, which can be read again")
    options = RayOptions(run.files.ray, run.files.ray_workers, run.files.limit)
    read = partial(read_records, run.source.absolute(), run.formats[0])
    return process_over_ray(run.stage, run.flags, read, output, options, progress)


def _arriving(run: StageRun, found: Iterator[Record]) -> Arrivals:
    """The input's records; of stdin, with word of when there is none yet."""
    from mlx_spec.pipeline.live import arriving
    from mlx_spec.pipeline.records import STDIO

    return arriving(found) if run.source == STDIO else found


def _report(run: StageRun, outcome: Outcome) -> int:
    """Statistics and what to do next; returns the exit code."""
    from mlx_spec.pipeline.records import STDIO

    if not run.files.quiet:
        for line in closing_lines(outcome, run.flags.drafting):
            say(line)
    elif outcome.failed:  # the exit code alone would say nothing
        for line in outcome.failures.lines():
            note(line)
    if outcome.warning is not None:
        note(f"warning: {run.name}: {outcome.warning}")
    if outcome.interrupted:
        again = STDIO not in (run.source, run.out)
        kept = f"{run.out}.all.jsonl" if run.stage.drops else run.out
        hint = f"; go on with --resume: {kept} keeps what is done" if again else ""
        note(f"interrupted after {outcome.tally.written} records{hint}")
        return 130
    return 1 if outcome.failed else 0


def _look(run: StageRun) -> tuple[str | None, int | None]:
    """A hash of the input and the number of its records, where it is a file that can be read.

    Raises:
        InvalidRequest: it cannot, or cannot be gone on with.
    """
    from mlx_spec.pipeline.records import STDIO, count, fingerprint

    source, out = run.source, run.out
    if run.files.goes_on and STDIO in (source, out):
        raise InvalidRequest(
            "[batch] --resume needs files, since stdin and stdout cannot be read again: save the "
            "input to a file and begin with that"
        )
    if source != STDIO and source.resolve() == out.resolve():
        raise InvalidRequest(f"[batch] {source} is both input and output")
    if source == STDIO:
        return None, None
    return fingerprint(source), count(source, run.formats[0])


def _open(run: StageRun, digest: str | None) -> Output:
    """The checked output."""
    from mlx_spec.pipeline.checkpoint import Checkpoint
    from mlx_spec.pipeline.process import identity
    from mlx_spec.pipeline.records import STDIO
    from mlx_spec.pipeline.stdout import StdoutOutput

    out, seed = run.out, run.flags.seed
    if out == STDIO:
        return StdoutOutput(run.formats[1], seed, dropping=run.stage.drops)
    mark = identity(run.stage, run.flags, digest)
    return Checkpoint(
        out,
        run.formats[1],
        mark,
        seed,
        resume=run.files.goes_on,
        overwrite=run.files.overwrite,
        retry=run.files.retry_failed,
        dropping=run.stage.drops,
    )


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
