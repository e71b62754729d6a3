"""The options of ``mlx-spec generate``: mlx-lm's names and defaults wherever it has one.

Types only; what an option means to the engine is written once, in ``config``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def truth(text: str) -> bool:
    """mlx-lm's reading of a truth value: everything but "false" and "f" is true."""
    return text.lower() not in ("false", "f")


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Folder, Hugging Face hub id, or demo. Without it the embedded pair is used.",
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option("--draft-model", help="Smaller model that guesses ahead; same tokenizer."),
]
AdapterPath = Annotated[
    Path | None, typer.Option("--adapter-path", help="Folder of LoRA adapters.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, float16 or bfloat16. Default: as stored; float32 on the CPU.",
    ),
]
Kernels = Annotated[
    str,
    typer.Option(
        "--kernels",
        metavar="WHICH",
        help="Metal kernels of our own: auto (those measured to win here), metal (all) or "
        "reference (none).",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
]
Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="Repeatable; - reads stdin."),
]
PromptFile = Annotated[
    Path | None,
    typer.Option("--prompt-file", help="One prompt a line; blank lines are skipped."),
]
SystemPrompt = Annotated[str | None, typer.Option("--system-prompt", help="For the chat template.")]
IgnoreChatTemplate = Annotated[
    bool, typer.Option("--ignore-chat-template", help="Feed the prompts as they are.")
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", "-m", help="Most tokens to generate, each prompt.")
]
Temp = Annotated[float, typer.Option("--temp", help="Temperature; 0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", help="Nucleus, in (0, 1].")]
TopK = Annotated[int, typer.Option("--top-k", help="Most tokens to keep; 0 keeps all.")]
MinP = Annotated[float, typer.Option("--min-p", help="Least share of the best token's.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same text, in any batch.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Text that ends it; repeatable.")
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on past end-of-sequence tokens.")]
EnableSpeculative = Annotated[
    bool | None,
    typer.Option(
        "--enable-speculative/--no-speculative",
        help="Guess ahead with the draft model, which implies it.",
        show_default=False,
    ),
]
NumDraftTokens = Annotated[
    int,
    typer.Option("--num-draft-tokens", help="Draft length; the maximum when adaptive."),
]
Adaptive = Annotated[
    bool,
    typer.Option(
        "--adaptive/--no-adaptive",
        help="Choose the draft length step by step, by measured cost and acceptance.",
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare",
        help="Run again without speculation: speeds of both; exit 1 if a token differs.",
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", help="Most prompts decoded together, in rows.")
]
BatchTimeout = Annotated[
    float, typer.Option("--batch-timeout", help="Longest wait for a batch, in seconds.")
]
Batching = Annotated[
    bool, typer.Option("--batching/--no-batching", help="Together, or one at a time.")
]
PrefillStepSize = Annotated[
    int, typer.Option("--prefill-step-size", help="Most prompt tokens of a row a pass.")
]
PerformanceLog = Annotated[
    Path | None,
    typer.Option("--performance-log", metavar="DIR", help="Write figures there as JSON lines."),
]
Verbose = Annotated[
    str,
    typer.Option(
        "--verbose",
        metavar="BOOL",
        help="Frames and statistics (True), or the bare text (False).",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object a prompt on stdout, nothing else.")
]
