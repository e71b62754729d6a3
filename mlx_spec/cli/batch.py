"""``mlx-spec batch``: a file of records through a model, resumable at any point.

Exit codes: 0 all records are fine; 1 some carry an ``error``; 2 bad input; 130 Ctrl-C, with what is
done on disk.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_spec.cli import options
from mlx_spec.cli.progress import Progress, figures, note, say
from mlx_spec.cli.report import statistics_lines
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_spec.pipeline.flags import Flags
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
    typer.Option("--prompt-field", help="Field that is the prompt.  [default: prompt, else text]"),
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
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin again if OUT exists.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N records.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help="jsonl, csv or parquet, where a name does not say it."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no statistics.")]


def batch(
    source: Input,
    out: Out,
    model: options.Model = None,
    draft_model: options.DraftModel = None,
    adapter_path: options.AdapterPath = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    prompt_template: PromptTemplate = None,
    prompt_field: PromptField = None,
    messages_field: MessagesField = None,
    output_field: OutputField = "output",
    system_prompt: options.SystemPrompt = None,
    ignore_chat_template: options.IgnoreChatTemplate = False,
    max_tokens: options.MaxTokens = SamplingParams.max_tokens,
    temp: options.Temp = SamplingParams.temperature,
    top_p: options.TopP = SamplingParams.top_p,
    top_k: options.TopK = SamplingParams.top_k,
    min_p: options.MinP = SamplingParams.min_p,
    seed: options.Seed = None,
    stop: options.Stop = None,
    ignore_eos: options.IgnoreEos = False,
    enable_speculative: options.EnableSpeculative = None,
    num_draft_tokens: options.NumDraftTokens = SpeculationConfig.num_draft_tokens,
    adaptive: options.Adaptive = True,
    batch_size: options.BatchSize = BatchingConfig.batch_size,
    batch_timeout: options.BatchTimeout = BatchingConfig.batch_timeout,
    batching: options.Batching = True,
    prefill_step_size: options.PrefillStepSize = BatchingConfig.prefill_step_size,
    kernels: options.Kernels = "auto",
    unordered: Unordered = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    limit: Limit = None,
    format: Format = None,
    quiet: Quiet = False,
) -> None:
    """Complete every record of a file; results are written as they come.

    A record that fails gets an "error" field and the run goes on. After a crash, --resume goes on
    where it stopped: the output is the one of an undisturbed run.
    """
    from mlx_spec.pipeline.flags import Flags
    from mlx_spec.pipeline.stages.generate import GenerateText

    flags = Flags(
        model=model,
        draft_model=draft_model,
        adapter_path=None if adapter_path is None else str(adapter_path),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        system_prompt=system_prompt,
        ignore_chat_template=ignore_chat_template,
        max_tokens=max_tokens,
        temp=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        enable_speculative=enable_speculative,
        num_draft_tokens=num_draft_tokens,
        adaptive=adaptive,
        batch_size=batch_size,
        batch_timeout=batch_timeout,
        batching=batching,
        prefill_step_size=prefill_step_size,
        kernels=kernels,
        unordered=unordered,
    )
    stage = GenerateText(
        prompt_template=prompt_template,
        prompt_field=prompt_field,
        messages_field=messages_field,
        output_field=output_field,
    )
    if model is None and not quiet:
        note(f"no --model given, using the embedded {flags.target}")
    raise typer.Exit(_run(stage, flags, source, out, format, resume, overwrite, limit, quiet))


def _run(
    stage: Stage,
    flags: Flags,
    source: Path,
    out: Path,
    format: str | None,
    resume: bool,
    overwrite: bool,
    limit: int | None,
    quiet: bool,
) -> int:
    """Check, run, report; returns the exit code."""
    from mlx_spec.pipeline import records
    from mlx_spec.pipeline.backend import Models
    from mlx_spec.pipeline.process import process

    formats = records.format_of(source, format), records.format_of(out, format)
    if "parquet" in formats:
        records.import_parquet()
    output, total = _open(stage, flags, source, out, formats[1], resume, overwrite)
    if total is not None:
        total = min(records.expected(source, formats[0], total), limit or sys.maxsize)
    with Progress("batch", total, quiet) as progress:
        outcome = process(
            stage,
            flags,
            records.read_records(source, formats[0]),
            output,
            Models(),
            limit=limit,
            watch=progress,
        )
    if not quiet:
        for line in closing_lines(outcome, flags.drafter is not None):
            say(line)
    if outcome.interrupted:
        again = records.STDIO not in (source, out)
        hint = f"; go on with --resume: {out} keeps what is done" if again else ""
        note(f"interrupted after {outcome.tally.written} records{hint}")
        return 130
    return 1 if outcome.failed else 0


def _open(
    stage: Stage,
    flags: Flags,
    source: Path,
    out: Path,
    format: str,
    resume: bool,
    overwrite: bool,
) -> tuple[Output, int | None]:
    """The checked output, and the number of lines of the input if it is known."""
    from mlx_spec.pipeline.checkpoint import Checkpoint
    from mlx_spec.pipeline.process import identity
    from mlx_spec.pipeline.records import STDIO, fingerprint
    from mlx_spec.pipeline.stdout import StdoutOutput

    if resume and STDIO in (source, out):
        raise InvalidRequest(
            "[batch] --resume needs files, since stdin and stdout cannot be read again: save the "
            "input to a file and begin with that"
        )
    if source != STDIO and source.resolve() == out.resolve():
        raise InvalidRequest(f"[batch] {source} is both input and output")
    digest, lines = (None, None) if source == STDIO else fingerprint(source)
    if out == STDIO:
        return StdoutOutput(format, flags.seed), lines
    mark = identity(stage, flags, digest)
    return Checkpoint(out, format, mark, flags.seed, resume=resume, overwrite=overwrite), lines


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
    speed = f" ({figures(tally, outcome.stats, outcome.seconds)})" if tally.written else ""
    lines = [f"Records: {', '.join(counts)}{speed}"]
    if outcome.stats.generation_tokens:
        lines = [*statistics_lines(outcome.stats, drafting), *lines]
    return lines
