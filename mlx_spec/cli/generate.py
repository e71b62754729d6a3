"""``mlx-spec generate``: decode prompts together, stream the text, then show statistics.

The command's options become one :class:`Job` here; everything that can be wrong with them is found
before a model is loaded.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlx_spec.cli import options
from mlx_spec.cli.listening import listeners
from mlx_spec.cli.prompts import DEFAULT_PROMPT, DEMO_PROMPT, read_prompts
from mlx_spec.cli.report import comparison_lines, statistics_lines
from mlx_spec.cli.streaming import OrderedPrinter
from mlx_spec.config import SamplingParams
from mlx_spec.errors import InvalidRequest
from mlx_spec.flags import Flags
from mlx_spec.results import BatchResult

if TYPE_CHECKING:
    from mlx_spec.batching.stream import BatchStream


@dataclass(frozen=True)
class Job:
    """One run of the command, its options checked.

    Attributes:
        prompts: texts, none empty.
        flags: models and options, as all commands take them.
        sampling: one for each prompt.
        verbose: frames and statistics, or the bare text.
        compare: run again without speculation.
        as_json: objects on stdout instead of text.
        performance_log: folder for figures of the run, or None.
    """

    prompts: list[str]
    flags: Flags
    sampling: list[SamplingParams]
    verbose: bool
    compare: bool
    as_json: bool
    performance_log: Path | None


@options.take_flags
def generate(
    *,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    flags: Flags,
    compare: options.Compare = False,
    verbose: options.Verbose = "True",
    performance_log: options.PerformanceLog = None,
    as_json: options.AsJson = False,
) -> None:
    """Generate text for one or more prompts, decoded together.

    With a draft model the text is the same, token for token, and comes sooner.
    """
    if compare and flags.drafter is None:
        raise InvalidRequest("[generate] --compare needs speculation: give a --draft-model")
    default = DEFAULT_PROMPT if flags.model else DEMO_PROMPT
    prompts = read_prompts(prompt or [], prompt_file, default)
    sampling, count = flags.sampling, len(prompts)
    job = Job(
        prompts=prompts,
        flags=flags,
        sampling=_seeded(sampling, count) if compare else [sampling] * count,
        verbose=options.truth(verbose) and not as_json,
        compare=compare,
        as_json=as_json,
        performance_log=performance_log,
    )
    if flags.model is None:
        names = filter(None, (flags.target, flags.drafter))
        _note(f"no --model given, using the embedded {' and '.join(names)}")
    raise typer.Exit(run(job))


def run(job: Job) -> int:
    """Load, decode, show; returns the exit code."""
    target, draft = _load_models(job)
    job = replace(job, sampling=_stopping(job, target[1]))
    _warn(job, target[1])
    result, interrupted = _decode(job, target, draft)
    _show_results(job, result)
    if interrupted:
        return 130
    return _compare(job, target, result) if job.compare else 0


def _seeded(sampling: SamplingParams, count: int) -> list[SamplingParams]:
    """Options with a seed of its own for each prompt, so that a second run can repeat the first."""
    if sampling.seed is not None:
        return [sampling] * count
    return [replace(sampling, seed=secrets.randbits(32)) for _ in range(count)]


def _load_models(job: Job) -> tuple[tuple[Any, Any], tuple[Any, Any] | None]:
    """The target pair and the draft pair (model, tokenizer)."""
    from mlx_spec.model.loader import check_pair, load

    flags = job.flags
    load_options: dict[str, Any] = {
        "dtype": flags.dtype,
        "kernels": flags.kernels,
        "trust_remote_code": flags.trust_remote_code,
    }
    with _status(f"loading {flags.target}"):
        target = load(flags.target, adapter_path=flags.adapter_path, **load_options)
    if flags.drafter is None:
        return target, None
    with _status(f"loading {flags.drafter}"):
        draft = load(flags.drafter, **load_options)
    check_pair(target[1], draft[1])
    return target, draft


def _stopping(job: Job, tokenizer: Any) -> list[SamplingParams]:
    """The options with the ids of ``--extra-eos-token``, which only the tokenizer knows."""
    ids = job.flags.sampling_for(tokenizer).stop_ids
    return [replace(one, stop_token_ids=ids) for one in job.sampling]


def _decode(
    job: Job, target: tuple[Any, Any], draft: tuple[Any, Any] | None
) -> tuple[BatchResult, bool]:
    """Decode while showing the text; what there is, and whether Ctrl-C cut it short."""
    from mlx_spec.api import stream_batch_generate

    interrupted = False
    with ExitStack() as stack:
        stream: BatchStream = stack.enter_context(
            stream_batch_generate(
                *target,
                job.prompts,
                draft_model=draft,
                sampling=job.sampling,
                chat=job.flags.chat(target[1]),
                speculation=job.flags.speculation,
                batching=job.flags.batches,
                listeners=listeners(job.performance_log, job.flags, stack),
            )
        )
        printer = None if job.as_json else OrderedPrinter(job.prompts, sys.stdout, job.verbose)
        try:
            for chunk in stream:
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
    sys.stdout.flush()


def _compare(job: Job, target: tuple[Any, Any], result: BatchResult) -> int:
    """Decode again plainly; 1 if a token differs."""
    from mlx_spec.api import batch_generate

    with _status("the same without speculation"):
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
        _note(
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
                _note(f"--{option} is ignored: no chat template is applied")
    if BLAS_VARIABLE not in os.environ and blas_advice(ensure_blas()) is not None:
        _note("MLX runs slowly here, with its own BLAS; `mlx-spec doctor` says how to change that")


def _note(text: str) -> None:
    print(f"mlx-spec: {text}", file=sys.stderr)


def _status(text: str) -> AbstractContextManager[Any]:
    """A spinner on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"{text} ...")
