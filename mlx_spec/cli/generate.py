"""``mlx-spec generate``: decode prompts together, stream the text, then show statistics.

The command's flags become one :class:`Job` of frozen options here, and nowhere else; everything
that can be wrong with them is found before a model is loaded.
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
from mlx_spec.cli.prompts import DEFAULT_PROMPT, DEMO_PROMPT, read_prompts
from mlx_spec.cli.report import comparison_lines, statistics_lines
from mlx_spec.cli.streaming import OrderedPrinter
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import InvalidRequest
from mlx_spec.events import Listener
from mlx_spec.results import BatchResult

if TYPE_CHECKING:
    from mlx_spec.batching.stream import BatchStream

TARGET, DRAFT = "demo", "demo-draft"


@dataclass(frozen=True)
class Job:
    """One run of the command, its options checked.

    Attributes:
        prompts: texts, none empty.
        model, draft_model: what to load; no draft decodes plainly.
        load_options: keyword arguments of ``load`` for both models; ``adapter_path`` is the
            target's alone.
        sampling: one for each prompt.
        system_prompt, chat: whether and how to apply the tokenizer's chat template.
        verbose: frames and statistics, or the bare text.
        compare: run again without speculation.
        as_json: objects on stdout instead of text.
        performance_log: folder for figures of the run, or None.
    """

    prompts: list[str]
    model: str
    draft_model: str | None
    load_options: dict[str, Any]
    adapter_path: Path | None
    sampling: list[SamplingParams]
    speculation: SpeculationConfig
    batching: BatchingConfig
    system_prompt: str | None
    chat: bool
    verbose: bool
    compare: bool
    as_json: bool
    performance_log: Path | None


def generate(
    model: options.Model = None,
    draft_model: options.DraftModel = None,
    adapter_path: options.AdapterPath = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
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
    compare: options.Compare = False,
    batch_size: options.BatchSize = BatchingConfig.batch_size,
    batch_timeout: options.BatchTimeout = BatchingConfig.batch_timeout,
    batching: options.Batching = True,
    prefill_step_size: options.PrefillStepSize = BatchingConfig.prefill_step_size,
    kernels: options.Kernels = "auto",
    verbose: options.Verbose = "True",
    performance_log: options.PerformanceLog = None,
    as_json: options.AsJson = False,
) -> None:
    """Generate text for one or more prompts, decoded together.

    With a draft model the text is the same, token for token, and comes sooner.
    """
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )
    speculation = SpeculationConfig(num_draft_tokens=num_draft_tokens, adaptive=adaptive)
    batches = BatchingConfig(
        batch_size=batch_size, batch_timeout=batch_timeout, prefill_step_size=prefill_step_size
    )
    drafting = _draft(model, draft_model, enable_speculative)
    if compare and drafting is None:
        raise InvalidRequest("[generate] --compare needs speculation: give a --draft-model")
    prompts = read_prompts(prompt or [], prompt_file, DEFAULT_PROMPT if model else DEMO_PROMPT)
    job = Job(
        prompts=prompts,
        model=model or TARGET,
        draft_model=drafting,
        load_options={
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "kernels": kernels,
        },
        adapter_path=adapter_path,
        sampling=_seeded(sampling, len(prompts)) if compare else [sampling] * len(prompts),
        speculation=speculation,
        batching=batches if batching else replace(batches, batch_size=1),
        system_prompt=system_prompt,
        chat=not ignore_chat_template,
        verbose=options.truth(verbose) and not as_json,
        compare=compare,
        as_json=as_json,
        performance_log=performance_log,
    )
    if model is None:
        names = (job.model, job.draft_model)
        _note(f"no --model given, using the embedded {' and '.join(filter(None, names))}")
    raise typer.Exit(run(job))


def run(job: Job) -> int:
    """Load, decode, show; returns the exit code."""
    target, draft = _load_models(job)
    prompts = [_as_prompt(job, target[1], text) for text in job.prompts]
    _warn(job, target[1])
    result, interrupted = _decode(job, target, draft, prompts)
    _show_results(job, result)
    if interrupted:
        return 130
    return _compare(job, target, prompts, result) if job.compare else 0


def _draft(model: str | None, draft_model: str | None, enable: bool | None) -> str | None:
    """Which draft model to use, if any."""
    if enable is False:
        return None
    if draft_model is None and model is None:
        return DRAFT
    if draft_model is None and enable:
        raise InvalidRequest("[generate] --enable-speculative needs a --draft-model")
    return draft_model


def _seeded(sampling: SamplingParams, count: int) -> list[SamplingParams]:
    """Options with a seed of its own for each prompt, so that a second run can repeat the first."""
    if sampling.seed is not None:
        return [sampling] * count
    return [replace(sampling, seed=secrets.randbits(32)) for _ in range(count)]


def _load_models(job: Job) -> tuple[tuple[Any, Any], tuple[Any, Any] | None]:
    """The target pair and the draft pair (model, tokenizer)."""
    from mlx_spec.model.loader import check_pair, load

    with _status(f"loading {job.model}"):
        target = load(job.model, adapter_path=job.adapter_path, **job.load_options)
    if job.draft_model is None:
        return target, None
    with _status(f"loading {job.draft_model}"):
        draft = load(job.draft_model, **job.load_options)
    check_pair(target[1], draft[1])
    return target, draft


def _as_prompt(job: Job, tokenizer: Any, text: str) -> str | list[dict[str, str]]:
    """The text itself, or as chat messages where the tokenizer has a template for them."""
    if not (job.chat and tokenizer.has_chat_template):
        return text
    messages = [{"role": "user", "content": text}]
    if job.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": job.system_prompt})
    return messages


def _decode(
    job: Job, target: tuple[Any, Any], draft: tuple[Any, Any] | None, prompts: list[Any]
) -> tuple[BatchResult, bool]:
    """Decode while showing the text; what there is, and whether Ctrl-C cut it short."""
    from mlx_spec.api import stream_batch_generate

    interrupted = False
    with ExitStack() as stack:
        stream: BatchStream = stack.enter_context(
            stream_batch_generate(
                *target,
                prompts,
                draft_model=draft,
                sampling=job.sampling,
                speculation=job.speculation,
                batching=job.batching,
                listeners=_listeners(job, stack),
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


def _listeners(job: Job, stack: ExitStack) -> list[Listener]:
    """The performance log, if one was asked for; closed with the stack."""
    if job.performance_log is None:
        return []
    from mlx_spec.metrics import PerformanceLog

    names = {"target": job.model, "draft": job.draft_model}
    notes = {role: name for role, name in names.items() if name is not None}
    return [stack.enter_context(PerformanceLog(job.performance_log, notes))]


def _show_results(job: Job, result: BatchResult) -> None:
    """Statistics after the text, or the JSON objects in its place."""
    if job.as_json:
        for index, one in enumerate(result.results):
            record = {"index": index, "prompt": job.prompts[index], **asdict(one)}
            print(json.dumps(record, ensure_ascii=False))
    elif job.verbose:
        for line in statistics_lines(result.stats, job.draft_model is not None):
            print(line)
    sys.stdout.flush()


def _compare(job: Job, target: tuple[Any, Any], prompts: list[Any], result: BatchResult) -> int:
    """Decode again plainly; 1 if a token differs."""
    from mlx_spec.api import batch_generate

    with _status("the same without speculation"):
        plain = batch_generate(
            *target,
            prompts,
            sampling=job.sampling,
            speculation=replace(job.speculation, enabled=False),
            batching=job.batching,
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

    if job.system_prompt is not None and not (job.chat and tokenizer.has_chat_template):
        _note("--system-prompt is ignored: no chat template is applied")
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
