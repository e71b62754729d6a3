"""One run of ``mlx-spec generate``, its options checked: load, decode, show, and compare."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_spec import interrupts
from mlx_spec.cli.draft_colors import DraftPaint
from mlx_spec.cli.given import Given, GivenPrompts
from mlx_spec.cli.listening import listeners
from mlx_spec.cli.notes import note, saying, status
from mlx_spec.cli.reading import PromptLine
from mlx_spec.cli.statistics import comparison_lines, statistics_lines
from mlx_spec.cli.streaming import OrderedPrinter
from mlx_spec.config import ChatConfig, SamplingParams
from mlx_spec.pipeline.flags import Flags
from mlx_spec.results import BatchResult

if TYPE_CHECKING:
    from mlx_spec.batching.prompts import Prompt
    from mlx_spec.batching.stream import BatchStream
    from mlx_spec.model.prompt_cache import PromptCache
    from mlx_spec.pipeline.backend import Loaded

# Drawn seeds shown; --json shows all.
_MOST_SEEDS = 8


@dataclass(frozen=True)
class GenerateRun:
    """One run of the command, its options checked.

    Attributes:
        prompts: texts and conversations, none empty; each as often as texts of it are wanted.
        samples: texts for each prompt.
        flags: models and options, as all commands take them.
        sampling: one for each of ``prompts``.
        verbose: frames and statistics, or the bare text.
        quiet: nothing but the text and errors.
        compare: run again without speculation, or one at a time where there is none.
        as_json: objects on stdout instead of text.
        performance_log: folder for figures of the run, or None.
        show_drafts: colour accepted draft tokens.
        given: the prompts as they were given, each once.
        save_messages: where conversations go with their answers, or None.
        prompt_cache_file: a prompt that was read before, which all others follow, or None.
        fed: what the engine gets in the place of ``prompts``, where that is something else.
    """

    prompts: list[Given]
    samples: int
    flags: Flags
    sampling: list[SamplingParams]
    verbose: bool
    quiet: bool
    compare: bool
    as_json: bool
    performance_log: str | None
    show_drafts: bool
    given: GivenPrompts
    save_messages: Path | None
    prompt_cache_file: Path | None = None
    fed: Sequence[Prompt] | None = None

    def chat(self, tokenizer: Any) -> ChatConfig:
        """How prompts are templated."""
        return replace(self.flags.chat(tokenizer), tools=self.given.tools)


def run_generate(run: GenerateRun) -> int:
    """Load, decode, show; returns the exit code."""
    target, draft = _load_models(run)
    run = replace(run, sampling=_stopping(run, target[1]))
    if not run.quiet:
        _warn(run, target[1])
    paint = DraftPaint(sys.stdout, run.show_drafts)
    cache = None
    if run.prompt_cache_file is not None:
        run, cache = _behind(run, run.prompt_cache_file, target)
    result, interrupted = _decode(run, target, draft, paint, cache)
    _show_results(run, result, paint)
    _save(run, result)
    if interrupted:
        return 130
    failed = [(index, one.error) for index, one in enumerate(result.results) if one.error]
    for index, error in failed:
        note(f"prompt {index + 1} of {len(run.prompts)} failed: {error}")
    if failed:
        return 1
    return _compare(run, target, result) if run.compare else 0


def _load_models(run: GenerateRun) -> tuple[Loaded, Loaded | None]:
    """The target pair and the draft pair (model, tokenizer)."""
    flags = run.flags
    with status(f"loading {flags.target}", run.quiet):
        from mlx_spec.model.pairing import check_pair  # which itself takes seconds
        from mlx_spec.pipeline.backend import Models

        _check_messages(run)
    models = Models(lambda text: status(text, run.quiet), saying(run.quiet))
    target, draft = models.pair(flags, drafting=True)
    if draft is None:
        return target, None
    pairing = check_pair(target[1], draft[1])
    if pairing.share < 1 and not run.quiet:
        lost = "" if pairing.through_text else ", but is never guessed"
        note(f"{pairing}; that changes no text{lost}")
    return target, draft


def _behind(run: GenerateRun, path: Path, target: Loaded) -> tuple[GenerateRun, PromptCache]:
    """The same run behind a prompt that was read before, and that prompt.

    Raises:
        InvalidRequest: the file is none, another model's, or of other caches.
    """
    from mlx_spec.batching.prompts import prompt_name
    from mlx_spec.batching.read_prompt import following_ids
    from mlx_spec.model.prompt_cache import read_prompt_cache

    own = run.flags.batches.cache
    asked = None if own.kv_bits is None and own.max_kv_size is None else own
    cache = read_prompt_cache(path, target[0], run.flags.target, asked)
    chat, tokenizer = run.flags.chat(target[1]), target[1]
    fed = []
    for place, text in enumerate(run.prompts):
        where = f"[generate] {prompt_name(place, len(run.prompts))}"
        fed.append([*cache.tokens, *following_ids(tokenizer, str(text), chat, where)])
    kept = max(run.flags.prefix_cache_bytes, 2 * cache.nbytes)
    flags = replace(run.flags, prefix_cache_bytes=kept, **asdict(cache.options))
    return replace(run, fed=fed, flags=flags), cache


def _stopping(run: GenerateRun, tokenizer: Any) -> list[SamplingParams]:
    """The options with the ids of ``--extra-eos-token``, which only the tokenizer knows."""
    ids = run.flags.sampling_for(tokenizer).stop_ids
    return [replace(one, stop_token_ids=ids) for one in run.sampling]


def _titles(run: GenerateRun) -> list[str]:
    """What each text is shown under, where there are several."""
    from mlx_spec.batching.prompts import prompt_label

    titles = [prompt_label(prompt) for prompt in run.prompts]
    if run.samples == 1:
        return titles
    return [
        f"(seed {options.seed}) {title}"
        for options, title in zip(run.sampling, titles, strict=True)
    ]


def _check_messages(run: GenerateRun) -> None:
    """Refuse malformed messages before a model is loaded.

    Raises:
        InvalidRequest: with the number of the message.
    """
    from mlx_spec.batching.messages import check_messages
    from mlx_spec.batching.prompts import prompt_name

    for index, prompt in enumerate(run.given.prompts):
        if not isinstance(prompt, str):
            check_messages(prompt, f"[generate] {prompt_name(index, len(run.given.prompts))}")


def _decode(
    run: GenerateRun,
    target: Loaded,
    draft: Loaded | None,
    paint: DraftPaint,
    cache: PromptCache | None = None,
) -> tuple[BatchResult, bool]:
    """Decode while showing the text; what there is, and whether Ctrl-C cut it short."""
    from mlx_spec.api import stream_batch_generate

    interrupted = False
    reading = PromptLine(quiet=run.quiet)
    with ExitStack() as stack:
        stack.callback(reading.end)
        stream: BatchStream = stack.enter_context(
            stream_batch_generate(
                *target,
                run.fed or run.prompts,
                draft_model=draft,
                sampling=run.sampling,
                chat=run.chat(target[1]),
                speculation=run.flags.speculation,
                batching=run.flags.batches,
                listeners=[reading, *listeners(run.performance_log, run.flags, stack)],
            )
        )
        if cache is not None:
            kept = stream.remember(cache.tokens, cache.state)
            if not (kept or run.quiet):
                note("there is no room for the prompt cache beside the models: it is read again")
        printer = None
        if not run.as_json:
            printer = OrderedPrinter(_titles(run), sys.stdout, run.verbose, paint)
        try:
            for chunk in stream:
                reading.end()
                if printer is not None:
                    printer.add(chunk)
        except KeyboardInterrupt:
            interrupts.answered()
            interrupted = True
    result = stream.result()
    if printer is not None:
        printer.finish(result.texts)
    return result, interrupted


def _save(run: GenerateRun, result: BatchResult) -> None:
    """Write the conversations with their answers, where that was asked for.

    Raises:
        OutputError: the file cannot be written.
    """
    if run.save_messages is None:
        return
    begins = run.flags.prefill_response or ""
    answers = [f"{begins}{text}" for text in result.texts]
    run.given.as_chats(run.flags.system_prompt).answered(run.save_messages, answers)
    if not run.quiet:
        note(f"wrote {run.save_messages}")


def _show_results(run: GenerateRun, result: BatchResult, paint: DraftPaint) -> None:
    """Statistics after the text, or the JSON objects in its place."""
    if run.as_json:
        for index, one in enumerate(result.results):
            known = {"index": index, "prompt": run.prompts[index]}
            record = {
                **known,
                **asdict(replace(one, logprobs=None, prompt_logprobs=None)),
                **one.scores,
            }
            print(json.dumps(record, ensure_ascii=False))
    elif run.verbose:
        if (legend := paint.legend()) is not None:
            print(legend)
        for line in statistics_lines(result.stats, run.flags.drafting):
            print(line)
        if run.flags.temp and run.flags.seed is None:
            seeds = [str(one.seed) for one in result.results[:_MOST_SEEDS]]
            more = ", ..." if len(result.results) > len(seeds) else ""
            print(f"Seed, one a text: {', '.join(seeds)}{more} (drawn; --seed repeats a text)")
    sys.stdout.flush()


def _compare(run: GenerateRun, target: Loaded, result: BatchResult) -> int:
    """Decode again plainly, or one at a time where that was plain; 1 if a token differs."""
    from mlx_spec.api import batch_generate

    drafted = run.flags.drafting
    batches = run.flags.batches if drafted else replace(run.flags.batches, batch_size=1)
    with status(f"the same {'without speculation' if drafted else 'one at a time'}", run.quiet):
        plain = batch_generate(
            *target,
            run.fed or run.prompts,
            sampling=run.sampling,
            chat=run.chat(target[1]),
            speculation=replace(run.flags.speculation, enabled=False),
            batching=batches,
        )
    lines, equal = comparison_lines(result, plain, drafted)
    for line in lines:
        print(line, file=sys.stdout if run.verbose else sys.stderr)
    if not equal:
        note(
            "a fast BLAS or a GPU may round differently at each batch shape and flip a near-tie; "
            "in float32 on the CPU, with MLX_SPEC_BLAS=off, no token may differ"
        )
    return 0 if equal else 1


def _warn(run: GenerateRun, tokenizer: Any) -> None:
    """What a user should know before the run, on stderr."""
    from mlx_spec.platform import BLAS_VARIABLE, blas_advice, ensure_blas

    if run.given.chats is not None and run.flags.system_prompt is not None:
        note("--system-prompt is not for --messages, which bring their own")
    if not run.flags.chat(tokenizer).texts:
        for name in ("system_prompt", "prefill_response", "chat_template_config"):
            if getattr(run.flags, name) is not None:
                option = name.replace("_", "-")
                note(f"--{option} is ignored: no chat template is applied")
    if BLAS_VARIABLE not in os.environ and blas_advice(ensure_blas()) is not None:
        note("MLX runs slowly here, with its own BLAS; `mlx-spec doctor` says how to change that")
