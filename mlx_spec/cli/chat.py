"""``mlx-spec chat``: talk to a model."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from mlx_spec.cli.draft_colors import DraftPaint
from mlx_spec.cli.parameters import takes
from mlx_spec.cli.sharded import follow_where_told
from mlx_spec.cli.talk.dialogue import Dialogue
from mlx_spec.cli.talk.flags import ChatFlags
from mlx_spec.cli.talk.lines import open_lines
from mlx_spec.cli.talk.loop import Talk
from mlx_spec.cli.talk.slash import COMMANDS, obey
from mlx_spec.cli.terminal import need_stdout
from mlx_spec.pipeline.progress import say

# Of one who talks, and of nobody else: rows, and what only machines read.
_LEFT_OUT = (
    "batch_size",
    "batch_timeout",
    "batching",
    "ignore_chat_template",
    "logprobs",
    "prompt_logprobs",
    "top_logprobs",
    "unordered",
)

Messages = Annotated[
    Path | None,
    typer.Option(
        "--messages",
        metavar="FILE",
        help="Begin with the conversation of a JSON file, as /save writes it.",
        rich_help_panel="Prompts",
    ),
]
DropOld = Annotated[
    bool,
    typer.Option(
        "--drop-old",
        help="Forget the oldest exchanges where the context is full; else you are asked.",
        rich_help_panel="Prompts",
    ),
]
ShowDrafts = Annotated[
    bool,
    typer.Option(
        "--show-drafts",
        help="Accepted draft tokens in the colour of their drafter, on a terminal.",
        rich_help_panel="Output",
    ),
]
History = Annotated[
    bool,
    typer.Option(
        "--history/--no-history",
        help="Keep what you type for the next time.",
        rich_help_panel="Output",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Answers and errors only.", rich_help_panel="Output"),
]


@takes("flags", ChatFlags, without=_LEFT_OUT)
def chat(
    *,
    messages: Messages = None,
    drop_old: DropOld = False,
    flags: ChatFlags,
    show_drafts: ShowDrafts = False,
    history: History = True,
    quiet: Quiet = False,
) -> None:
    """Talk to a model, turn by turn; what was said is not read again.

    /help lists the commands inside. Ctrl-C stops an answer, Ctrl-D leaves. What is piped in is
    taken line by line, a message each. Without --model it is SmolLM2, with drafts.
    """
    follow_where_told(flags)
    need_stdout("chat")
    conversation = Dialogue(system=flags.system_prompt)
    if messages is not None:
        conversation.load(messages)
        conversation.system = flags.system_prompt or conversation.system
    from mlx_spec.cli.talk.speaker import Speaker

    typed = sys.stdin is not None and sys.stdin.isatty()
    with closing(Speaker(flags, quiet)) as speaker:
        paint = DraftPaint(sys.stdout, show_drafts)
        talk = Talk(speaker, conversation, say, paint, do=obey, drop_old=drop_old, goes_on=typed)
        lines = open_lines([f"/{name}" for name in COMMANDS], history)
        if typed and not quiet:
            say(f"{flags.target}, drafts: {speaker.drafting}; /help lists commands, Ctrl-D leaves")
            if paint.on:
                say(f"Tokens of drafts: {paint.key(speaker.kinds)}")
        talk.run(lines)
    raise typer.Exit(int(talk.failed and not typed))
