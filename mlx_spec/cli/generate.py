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
from mlx_spec.cli.notes import note, say_models
from mlx_spec.cli.parameters import takes, truth
from mlx_spec.cli.prompts import DEFAULT_PROMPT, DEMO_PROMPT, read_prompts
from mlx_spec.cli.sharded import follow_where_told
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
    flags: Flags,
    num_samples: NumSamples = 1,
    compare: Compare = False,
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
    if num_samples > 1 and not flags.temp:
        raise InvalidRequest(
            f"[generate] --num-samples {num_samples} of a greedy text are all the same; give --temp"
        )
    shown = truth(verbose) and not quiet
    prompts = read_prompts(prompt or [], prompt_file)
    if not quiet:
        _say_defaults(flags, bool(prompts))
    prompts = prompts or [_default_prompt(flags)]
    if compare and not flags.drafting and len(prompts) * num_samples == 1:
        raise InvalidRequest(
            "[generate] --compare needs a --draft-model, a --draft, or several prompts"
        )
    if compare and flags.temp and flags.acceptance != "shared_noise":
        raise InvalidRequest(
            f"[generate] --compare with --acceptance {flags.acceptance}: texts are the target's in "
            "distribution, and not the same token for token"
        )
    repeated = [text for text in prompts for _ in range(num_samples)]
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
    )
    raise typer.Exit(run_generate(run))


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
