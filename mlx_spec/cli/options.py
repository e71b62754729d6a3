"""The options of the commands: mlx-lm's names and defaults wherever it has one.

Types only; what an option means to the engine is written once, in ``config``. Those that commands
have in common are listed once, in ``FLAGS``, and given to a command by ``take_flags``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_spec.flags import Flags


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
PrefillResponse = Annotated[
    str | None,
    typer.Option(
        "--prefill-response", metavar="TEXT", help="How the answer begins; the model goes on."
    ),
]
ChatTemplateConfig = Annotated[
    str | None,
    typer.Option(
        "--chat-template-config",
        metavar="JSON",
        help="""Keywords for the chat template: '{"enable_thinking": false}'.""",
    ),
]
ExtraEosToken = Annotated[
    list[str] | None,
    typer.Option(
        "--extra-eos-token", metavar="TOKEN", help="One more token that ends it; repeatable."
    ),
]
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
MemoryLimit = Annotated[
    float | None,
    typer.Option(
        "--memory-limit",
        metavar="SHARE|BYTES",
        help="Most memory for models and K/V: a share of the device's, up to 1, or bytes. "
        "Requests wait where it is reached. Default: 0.9.",
    ),
]
PrefixCacheBytes = Annotated[
    int,
    typer.Option(
        "--prefix-cache-bytes",
        help="What prompts begin with is computed once and kept in so much memory; 0: never.",
    ),
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

FLAGS: dict[str, Any] = {
    "model": Model,
    "draft_model": DraftModel,
    "adapter_path": AdapterPath,
    "dtype": Dtype,
    "trust_remote_code": TrustRemoteCode,
    "system_prompt": SystemPrompt,
    "prefill_response": PrefillResponse,
    "ignore_chat_template": IgnoreChatTemplate,
    "chat_template_config": ChatTemplateConfig,
    "max_tokens": MaxTokens,
    "temp": Temp,
    "top_p": TopP,
    "top_k": TopK,
    "min_p": MinP,
    "seed": Seed,
    "stop": Stop,
    "ignore_eos": IgnoreEos,
    "extra_eos_token": ExtraEosToken,
    "enable_speculative": EnableSpeculative,
    "num_draft_tokens": NumDraftTokens,
    "adaptive": Adaptive,
    "batch_size": BatchSize,
    "batch_timeout": BatchTimeout,
    "batching": Batching,
    "prefill_step_size": PrefillStepSize,
    "memory_limit": MemoryLimit,
    "prefix_cache_bytes": PrefixCacheBytes,
    "kernels": Kernels,
}


def take_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all of ``FLAGS`` as options, in the place of its parameter ``flags``.

    Their defaults are those of ``Flags``, which the command is called with. typer reads a
    command's signature, so that is what is changed.
    """
    # A list that nobody gave is None.
    defaults = {item.name: None if item.default == () else item.default for item in fields(Flags)}
    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(command, eval_str=True).parameters.values():
        if own.name == "flags":
            parameters += [
                own.replace(name=name, default=defaults[name], annotation=kind)
                for name, kind in FLAGS.items()
            ]
        else:
            parameters.append(own)

    @functools.wraps(command)
    def taking(**given: Any) -> None:
        flags = {name: given.pop(name) for name in FLAGS}
        for name in ("stop", "extra_eos_token"):
            flags[name] = tuple(flags[name] or ())
        if flags["adapter_path"] is not None:
            flags["adapter_path"] = str(flags["adapter_path"])
        command(flags=Flags(**flags), **given)

    taking.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    taking.__annotations__ = {own.name: own.annotation for own in parameters}
    return taking
