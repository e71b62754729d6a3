"""``mlx-spec train-draft``: a draft for the user's own model, from the user's own prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_spec.cli.notes import note, status
from mlx_spec.cli.parameters import takes
from mlx_spec.cli.training_line import TrainingLine
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.options import options_of
from mlx_spec.training.recipe import Recipe

# Of the options that all commands take: which model, and how prompts are put to it.
_MODEL = (
    "model",
    "adapter_path",
    "revision",
    "dtype",
    "trust_remote_code",
    "system_prompt",
    "ignore_chat_template",
    "chat_template_config",
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to be made.")]
Prompts = Annotated[
    Path,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Lines of text, or JSON lines, CSV or Parquet with prompt, text or messages, and "
        "perhaps category.",
        rich_help_panel="Prompts",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no figures.")]


@takes("flags", Flags, without=set(options_of(Flags)) - set(_MODEL))
@takes("recipe", Recipe)
def train_draft(
    out: Out, *, prompts: Prompts, recipe: Recipe, flags: Flags, quiet: Quiet = False
) -> None:
    """Train a draft for a model, on what the model answers to your prompts.

    It writes the answers, reads the hidden states behind them, trains on those and measures on
    prompts that were held out. What is done lies in OUT.training: run the same command again
    after Ctrl-C or a crash and it goes on. OUT appears at the end; give it as --draft-model.
    """
    if flags.model is None:
        raise InvalidRequest("[train-draft] --model is needed: the model that the draft is for")
    from mlx_spec.training.questions import read_questions

    questions = read_questions(prompts)
    with status(f"loading {flags.model}", quiet):
        from mlx_spec.model.loader import load
        from mlx_spec.training.make import Making, Target, check_free

        check_free(out)
        model, tokenizer = load(flags.model, config=flags.loading)
    target = Target(flags.model, model, tokenizer, flags.chat(tokenizer))
    line = TrainingLine(quiet)
    making = Making(target, questions, recipe, out, line)
    try:
        making.run()
    except KeyboardInterrupt:
        line.close()
        note(f"interrupted; the same command goes on: {making.work} keeps what is done")
        raise
    finally:
        line.close()
    if not quiet:
        note(f"{out} is made; its README.md says what it reached. Try: --draft-model {out}")
        note(f"{making.work} may be deleted")
