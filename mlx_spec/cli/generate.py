"""``mlx-spec generate``: decode prompts together, stream the text, then show statistics.

The command's options become one :class:`Job` here; everything that can be wrong with them is found
before a model is loaded.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlx_spec.cli import options
from mlx_spec.cli.listening import listeners
from mlx_spec.cli.progress import note, say_embedded, status
from mlx_spec.cli.prompts import DEFAULT_PROMPT, DEMO_PROMPT, read_prompts
from mlx_spec.cli.reading import PromptLine
from mlx_spec.cli.report import comparison_lines, statistics_lines
from mlx_spec.cli.streaming import OrderedPrinter
from mlx_spec.config import SamplingParams
from mlx_spec.errors import InvalidRequest
from mlx_spec.flags import Flags
from mlx_spec.results import BatchResult

# Drawn seeds shown; --json shows all.
_MOST_SEEDS = 8

if TYPE_CHECKING:
    from mlx_spec.batching.stream import BatchStream


@dataclass(frozen=True)
class Job:
    """One run of the command, its options checked.

    Attributes:
        prompts: texts, none empty; each as often as texts of it are wanted.
        samples: texts for each prompt.
        flags: models and options, as all commands take them.
        sampling: one for each of ``prompts``.
        verbose: frames and statistics, or the bare text.
        quiet: nothing but the text and errors.
        compare: run again without speculation.
        as_json: objects on stdout instead of text.
        performance_log: folder for figures of the run, or None.
    """

    prompts: list[str]
    samples: int
    flags: Flags
    sampling: list[SamplingParams]
    verbose: bool
    quiet: bool
    compare: bool
    as_json: bool
    performance_log: Path | None


@options.take_flags
def generate(
    *,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    flags: Flags,
    num_samples: options.NumSamples = 1,
    compare: options.Compare = False,
    verbose: options.Verbose = "True",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    performance_log: options.PerformanceLog = None,
) -> None:
    """Generate text for one or more prompts, decoded together.

    With a draft model the text is the same, token for token, and comes sooner. Without --model
    the embedded toys write something like Python.
    """
    if compare and flags.drafter is None:
        raise InvalidRequest("[generate] --compare needs speculation: give a --draft-model")
    if num_samples > 1 and not flags.temp:
        raise InvalidRequest(
            f"[generate] --num-samples {num_samples} of a greedy text are all the same; give --temp"
        )
    shown = options.truth(verbose) and not quiet
    prompts = read_prompts(prompt or [], prompt_file)
    if not quiet:
        _say_defaults(flags, bool(prompts))
    prompts = prompts or [_default_prompt(flags)]
    repeated = [text for text in prompts for _ in range(num_samples)]
    job = Job(
        prompts=repeated,
        samples=num_samples,
        flags=flags,
        sampling=_seeded(flags.sampling, len(repeated), num_samples),
        verbose=shown and not as_json,
        quiet=quiet,
        compare=compare,
        as_json=as_json,
        performance_log=performance_log,
    )
    raise typer.Exit(run(job))


def run(job: Job) -> int:
    """Load, decode, show; returns the exit code."""
    target, draft = _load_models(job)
    job = replace(job, sampling=_stopping(job, target[1]))
    if not job.quiet:
        _warn(job, target[1])
    result, interrupted = _decode(job, target, draft)
    _show_results(job, result)
    if interrupted:
        return 130
    failed = [(index, one.error) for index, one in enumerate(result.results) if one.error]
    for index, error in failed:
        note(f"prompt {index + 1} of {len(job.prompts)} failed: {error}")
    if failed:
        return 1
    return _compare(job, target, result) if job.compare else 0


def _default_prompt(flags: Flags) -> str:
    return DEFAULT_PROMPT if flags.model else DEMO_PROMPT


def _say_defaults(flags: Flags, prompted: bool) -> None:
    """What stands in for what was not given."""
    say_embedded(flags)
    if not prompted:
        note(f"no --prompt given, using {_default_prompt(flags)!r}")


def _seeded(sampling: SamplingParams, count: int, samples: int) -> list[SamplingParams]:
    """Options for each text. A seed that was drawn is known, so that the text can be repeated."""
    if not sampling.temperature:
        return [sampling] * count
    if sampling.seed is None:
        return [replace(sampling, seed=secrets.randbits(32)) for _ in range(count)]
    return [replace(sampling, seed=sampling.seed + index % samples) for index in range(count)]


def _load_models(job: Job) -> tuple[tuple[Any, Any], tuple[Any, Any] | None]:
    """The target pair and the draft pair (model, tokenizer)."""
    flags = job.flags
    options: dict[str, Any] = {
        "dtype": flags.dtype,
        "kernels": flags.kernels,
        "trust_remote_code": flags.trust_remote_code,
    }
    with status(f"loading {flags.target}", job.quiet):
        from mlx_spec.model.loader import load  # which itself takes seconds
        from mlx_spec.model.pairing import check_pair

        target = load(flags.target, adapter_path=flags.adapter_path, **options)
    if flags.drafter is None:
        return target, None
    with status(f"loading {flags.drafter}", job.quiet):
        draft = load(flags.drafter, **options)
    pairing = check_pair(target[1], draft[1])
    if pairing.share < 1 and not job.quiet:
        note(f"{pairing}; that changes no text, but is never guessed")
    return target, draft


def _stopping(job: Job, tokenizer: Any) -> list[SamplingParams]:
    """The options with the ids of ``--extra-eos-token``, which only the tokenizer knows."""
    ids = job.flags.sampling_for(tokenizer).stop_ids
    return [replace(one, stop_token_ids=ids) for one in job.sampling]


def _titles(job: Job) -> list[str]:
    """What each text is shown under, where there are several."""
    if job.samples == 1:
        return job.prompts
    return [
        f"(seed {options.seed}) {prompt}"
        for options, prompt in zip(job.sampling, job.prompts, strict=True)
    ]


def _decode(
    job: Job, target: tuple[Any, Any], draft: tuple[Any, Any] | None
) -> tuple[BatchResult, bool]:
    """Decode while showing the text; what there is, and whether Ctrl-C cut it short."""
    from mlx_spec.api import stream_batch_generate

    interrupted = False
    reading = PromptLine(quiet=job.quiet)
    with ExitStack() as stack:
        stack.callback(reading.end)
        stream: BatchStream = stack.enter_context(
            stream_batch_generate(
                *target,
                job.prompts,
                draft_model=draft,
                sampling=job.sampling,
                chat=job.flags.chat(target[1]),
                speculation=job.flags.speculation,
                batching=job.flags.batches,
                listeners=[reading, *listeners(job.performance_log, job.flags, stack)],
            )
        )
        printer = None if job.as_json else OrderedPrinter(_titles(job), sys.stdout, job.verbose)
        try:
            for chunk in stream:
                reading.end()
                if printer is not None:
                    printer.add(chunk)
        except KeyboardInterrupt:
            interrupted = True
    result = stream.result()
    if printer is not None:
        printer.finish(result.texts)
    return result, interrupted


def _show_results(job: Job, result: BatchResult) -> None:
    """Statistics after the text, or the JSON objects in its place."""
    if job.as_json:
        for index, one in enumerate(result.results):
            record = {"index": index, "prompt": job.prompts[index], **asdict(one)}
            print(json.dumps(record, ensure_ascii=False))
    elif job.verbose:
        for line in statistics_lines(result.stats, job.flags.drafter is not None):
            print(line)
        if job.flags.temp and job.flags.seed is None:
            seeds = [str(one.seed) for one in result.results[:_MOST_SEEDS]]
            more = ", ..." if len(result.results) > len(seeds) else ""
            print(f"Seed, one a text: {', '.join(seeds)}{more} (drawn; --seed repeats a text)")
    sys.stdout.flush()


def _compare(job: Job, target: tuple[Any, Any], result: BatchResult) -> int:
    """Decode again plainly; 1 if a token differs."""
    from mlx_spec.api import batch_generate

    with status("the same without speculation", job.quiet):
        plain = batch_generate(
            *target,
            job.prompts,
            sampling=job.sampling,
            chat=job.flags.chat(target[1]),
            speculation=replace(job.flags.speculation, enabled=False),
            batching=job.flags.batches,
        )
    lines, equal = comparison_lines(result, plain)
    for line in lines:
        print(line, file=sys.stdout if job.verbose else sys.stderr)
    if not equal:
        note(
            "a fast BLAS or a GPU may round differently at each batch shape and flip a near-tie; "
            "in float32 on the CPU, with MLX_SPEC_BLAS=off, no token may differ"
        )
    return 0 if equal else 1


def _warn(job: Job, tokenizer: Any) -> None:
    """What a user should know before the run, on stderr."""
    from mlx_spec.platform import BLAS_VARIABLE, blas_advice, ensure_blas

    if not job.flags.chat(tokenizer).texts:
        for name in ("system_prompt", "prefill_response", "chat_template_config"):
            if getattr(job.flags, name) is not None:
                option = name.replace("_", "-")
                note(f"--{option} is ignored: no chat template is applied")
    if BLAS_VARIABLE not in os.environ and blas_advice(ensure_blas()) is not None:
        note("MLX runs slowly here, with its own BLAS; `mlx-spec doctor` says how to change that")
