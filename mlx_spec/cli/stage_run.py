"""One stage over a file: checked, run and reported, as ``mlx-spec batch`` and the stages do.

Exit codes: 0 all records are fine; 1 some carry an ``error``; 2 bad input; 130 Ctrl-C, with what is
done on disk.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_spec.cli.listening import listeners
from mlx_spec.cli.notes import note, say_models, saying, status
from mlx_spec.cli.sharded import follow_where_told
from mlx_spec.cli.statistics import statistics_lines
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.progress import Progress, figures, say

if TYPE_CHECKING:
    from mlx_spec.cli.file_options import FileOptions
    from mlx_spec.pipeline.flags import Flags
    from mlx_spec.pipeline.live import Arrivals
    from mlx_spec.pipeline.process import Outcome, Output
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
    follow_where_told(run.flags, generates=run.stage.uses == "generate")
    formats = run.formats
    if not run.files.quiet:
        say_models(run.flags)
    from mlx_spec.pipeline import records  # which takes a second, with all of mlx behind it
    from mlx_spec.pipeline.backend import Models
    from mlx_spec.pipeline.process import process

    if "parquet" in formats:
        records.import_parquet()
    output, total = _open(run)
    if total is not None:
        total = min(total, run.files.limit or sys.maxsize)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(run.name, total, run.files.quiet))
        outcome = process(
            run.stage,
            run.flags,
            _arriving(run),
            output,
            Models(lambda text: status(text, run.files.quiet), saying(run.files.quiet)),
            limit=run.files.limit,
            watch=progress,
            listeners=listeners(run.files.performance_log, run.flags, stack),
        )
    return _report(run, outcome)


def _arriving(run: StageRun) -> Arrivals:
    """The input's records; of stdin, with word of when there is none yet."""
    from mlx_spec.pipeline.live import arriving
    from mlx_spec.pipeline.records import STDIO, read_records

    found = read_records(run.source, run.formats[0])
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


def _open(run: StageRun) -> tuple[Output, int | None]:
    """The checked output, and the number of records of the input if it is known."""
    from mlx_spec.pipeline.checkpoint import Checkpoint
    from mlx_spec.pipeline.process import identity
    from mlx_spec.pipeline.records import STDIO, count, fingerprint
    from mlx_spec.pipeline.stdout import StdoutOutput

    source, out, seed = run.source, run.out, run.flags.seed
    if run.files.goes_on and STDIO in (source, out):
        raise InvalidRequest(
            "[batch] --resume needs files, since stdin and stdout cannot be read again: save the "
            "input to a file and begin with that"
        )
    if source != STDIO and source.resolve() == out.resolve():
        raise InvalidRequest(f"[batch] {source} is both input and output")
    digest = None if source == STDIO else fingerprint(source)
    total = None if source == STDIO else count(source, run.formats[0])
    if out == STDIO:
        return StdoutOutput(run.formats[1], seed, dropping=run.stage.drops), total
    mark = identity(run.stage, run.flags, digest)
    output = Checkpoint(
        out,
        run.formats[1],
        mark,
        seed,
        resume=run.files.goes_on,
        overwrite=run.files.overwrite,
        retry=run.files.retry_failed,
        dropping=run.stage.drops,
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
