"""``mlx-spec generate``: decode prompts together, stream the text, then show statistics.

Everything that can be wrong with the options is found before a model is loaded.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mlx_spec.cli.generate_run import GenerateRun, run_generate
from mlx_spec.cli.given import read_all
from mlx_spec.cli.new_files import check_writable
from mlx_spec.cli.notes import note, say_models
from mlx_spec.cli.parameters import takes, truth
from mlx_spec.cli.prompts import DEFAULT_PROMPT, DEMO_PROMPT
from mlx_spec.cli.sharded import follow_where_told
from mlx_spec.cli.terminal import need_stdout
from mlx_spec.config import SamplingParams
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags import Flags

# Into the groups of help that Flags has.
_in_prompt = partial(typer.Option, rich_help_panel="Prompts")
_in_sampling = partial(typer.Option, rich_help_panel="Sampling")
_in_speculation = partial(typer.Option, rich_help_panel="Speculation")
_in_output = partial(typer.Option, rich_help_panel="Output")

Prompt = Annotated[
    list[str] | None,
    _in_prompt(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="Repeatable; - reads stdin, as does a pipe without any -p.",
    ),
]
PromptFile = Annotated[
    Path | None,
    _in_prompt("--prompt-file", help="One prompt a line; blank lines are skipped."),
]
Messages = Annotated[
    Path | None,
    _in_prompt(
        "--messages",
        metavar="FILE",
        help="A conversation as JSON messages, several in a list or one a line; - is stdin.",
    ),
]
PromptCacheFile = Annotated[
    Path | None,
    _in_prompt(
        "--prompt-cache-file",
        metavar="FILE",
        help="A prompt read before, by `mlx-spec cache-prompt` or mlx_lm.cache_prompt; each "
        "--prompt goes on behind it.",
    ),
]
SaveMessages = Annotated[
    Path | None,
    _in_output(
        "--save-messages",
        metavar="FILE",
        help="Write the conversations there, each with its answer appended.",
    ),
]
ShowDrafts = Annotated[
    bool,
    _in_output(
        "--show-drafts",
        help="Accepted draft tokens in the colour of their drafter, on a terminal.",
    ),
]
NumSamples = Annotated[
    int,
    _in_sampling(
        "--num-samples",
        "-n",
        min=1,
        help="Texts for each prompt, with the seeds SEED, SEED + 1, ...; needs --temp.",
    ),
]
Compare = Annotated[
    bool,
    _in_speculation(
        "--compare",
        help="Run again without speculation (without a draft model: one at a time): speeds of "
        "both; exit 1 if a token differs.",
    ),
]
Verbose = Annotated[
    str,
    _in_output(
        "--verbose",
        metavar="BOOL",
        help="Frames and statistics (True), or the bare text (False).",
    ),
]
Quiet = Annotated[bool, _in_output("--quiet", "-q", help="The bare text and errors, nothing else.")]
PerformanceLog = Annotated[
    str | None,
    _in_output("--performance-log", metavar="DIR", help="Write figures there as JSON lines."),
]
AsJson = Annotated[
    bool, _in_output("--json", help="One JSON object a prompt on stdout, nothing else.")
]


@takes("flags", Flags, without=("unordered",))
def generate(
    *,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    messages: Messages = None,
    prompt_cache_file: PromptCacheFile = None,
    flags: Flags,
    num_samples: NumSamples = 1,
    compare: Compare = False,
    show_drafts: ShowDrafts = False,
    save_messages: SaveMessages = None,
    verbose: Verbose = "True",
    quiet: Quiet = False,
    as_json: AsJson = False,
    performance_log: PerformanceLog = None,
) -> None:
    """Generate text for one or more prompts, decoded together.

    With a draft model the text is the same, token for token, and comes sooner. Without --model
    the embedded toys write something like Python.
    """
    follow_where_told(flags)
    need_stdout("generate")
    if num_samples > 1:
        _check_samples(flags, num_samples, save_messages)
    shown = truth(verbose) and not quiet
    if prompt_cache_file is not None:
        flags = _behind(flags, prompt_cache_file, messages)
    if save_messages is not None:
        check_writable(save_messages, f"[generate] --save-messages {save_messages}")
    prompts = read_all(prompt or [], prompt_file, messages)
    if not quiet:
        _say_defaults(flags, bool(prompts.prompts))
    if not prompts.prompts:
        prompts = replace(prompts, prompts=[_default_prompt(flags)])
    if compare:
        _check_compared(flags, len(prompts.prompts) * num_samples)
    repeated = [one for one in prompts.prompts for _ in range(num_samples)]
    run = GenerateRun(
        prompts=repeated,
        samples=num_samples,
        flags=flags,
        sampling=_seeded(flags.sampling, len(repeated), num_samples),
        verbose=shown and not as_json,
        quiet=quiet,
        compare=compare,
        as_json=as_json,
        performance_log=performance_log,
        show_drafts=show_drafts,
        given=prompts,
        save_messages=save_messages,
        prompt_cache_file=prompt_cache_file,
    )
    raise typer.Exit(run_generate(run))


def _check_samples(flags: Flags, samples: int, save_messages: Path | None) -> None:
    """Refuse several texts where there is one.

    Raises:
        InvalidRequest: of a greedy prompt, or of a conversation that is to be saved.
    """
    if not flags.temp:
        raise InvalidRequest(
            f"[generate] --num-samples {samples} of a greedy text are all the same; give --temp"
        )
    if save_messages is not None:
        raise InvalidRequest(
            f"[generate] --save-messages with --num-samples {samples}: a conversation goes on "
            "with one answer"
        )


def _check_compared(flags: Flags, texts: int) -> None:
    """Refuse a comparison of what is the same, or need not be.

    Raises:
        InvalidRequest: which.
    """
    if not flags.drafting and texts == 1:
        raise InvalidRequest(
            "[generate] --compare needs a --draft-model, a --draft, or several prompts"
        )
    if flags.temp and flags.acceptance != "shared_noise":
        raise InvalidRequest(
            f"[generate] --compare with --acceptance {flags.acceptance}: texts are the target's in "
            "distribution, and not the same token for token"
        )


def _behind(flags: Flags, cache_file: Path, messages: Path | None) -> Flags:
    """The same with the file's model where none was named, as mlx-lm does.

    Raises:
        InvalidRequest: conversations, which begin by themselves.
    """
    if messages is not None:
        raise InvalidRequest(
            "[generate] --messages with --prompt-cache-file: a conversation cannot go on in the "
            "middle of a prompt; give --prompt"
        )
    if flags.shard is not None:
        raise InvalidRequest("[generate] --prompt-cache-file with --shard: one process reads it")
    if flags.model is not None:
        return flags
    from mlx_spec.cli.prompt_cache_model import model_of

    return replace(flags, model=model_of(cache_file))


def _default_prompt(flags: Flags) -> str:
    return DEFAULT_PROMPT if flags.model else DEMO_PROMPT


def _say_defaults(flags: Flags, prompted: bool) -> None:
    """What stands in for what was not given."""
    say_models(flags)
    if not prompted:
        note(f"no --prompt given, using {_default_prompt(flags)!r}")


def _seeded(sampling: SamplingParams, count: int, samples: int) -> list[SamplingParams]:
    """Options for each text. A seed that was drawn is known, so that the text can be repeated."""
    if not sampling.temperature:
        return [sampling] * count
    if sampling.seed is None:
        return [replace(sampling, seed=secrets.randbits(32)) for _ in range(count)]
    return [replace(sampling, seed=sampling.seed + index % samples) for index in range(count)]
