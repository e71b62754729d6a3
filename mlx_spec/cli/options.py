"""The options of the commands: mlx-lm's names and defaults wherever it has one.

Types only; what an option means to the engine is written once, in ``config``. Those that commands
have in common are listed once, in ``FLAGS``, and given to a command by ``take_flags``.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_spec.errors import InvalidRequest
from mlx_spec.flags import Flags

# The groups of --help, in the order in which it shows them.
_prompt = functools.partial(typer.Option, rich_help_panel="Prompts")
_model = functools.partial(typer.Option, rich_help_panel="Models")
_sampling = functools.partial(typer.Option, rich_help_panel="Sampling")
_speculation = functools.partial(typer.Option, rich_help_panel="Speculation")
_batching = functools.partial(typer.Option, rich_help_panel="Batching and memory")
_output = functools.partial(typer.Option, rich_help_panel="Output")

_UNITS = {"": 1, "b": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(?P<number>[\d.]+(?:e[+-]?\d+)?)\s*(?P<unit>%|(?:[kmgt]i?)?b?)", re.IGNORECASE)


def truth(text: str) -> bool:
    """A truth value as mlx-lm takes it, True or T, False or F, in any case.

    Raises:
        InvalidRequest: another word.
    """
    word = text.lower()
    if word not in ("true", "t", "yes", "1", "false", "f", "no", "0"):
        raise InvalidRequest(f"[flags] --verbose {text!r}, expected True or False")
    return word in ("true", "t", "yes", "1")


def memory_size(text: str | float) -> float:
    """``8GB``, ``8GiB``, ``50%``, a share up to 1, or bytes.

    Raises:
        BadParameter: none of these.
    """
    match = _SIZE.fullmatch(str(text).strip())
    try:
        number = float(match["number"]) if match else math.nan
    except ValueError:  # two points
        number = math.nan
    if match is None or math.isnan(number):
        raise typer.BadParameter(f"{text!r}, expected a size (8GB), a share (50%, 0.5) or bytes")
    unit = match["unit"].lower()
    if unit == "%":
        return number / 100
    size = number * _UNITS[unit.removesuffix("b")]
    return float(int(size)) if unit else size


Model = Annotated[
    str | None,
    _model(
        "--model",
        help="Folder, Hugging Face hub id, or demo. Without it the embedded pair is used.",
    ),
]
DraftModel = Annotated[
    str | None,
    _model("--draft-model", help="Smaller model that guesses ahead; same tokenizer."),
]
AdapterPath = Annotated[Path | None, _model("--adapter-path", help="Folder of LoRA adapters.")]
Dtype = Annotated[
    str | None,
    _model(
        "--dtype",
        help="float32, float16 or bfloat16. Default: as stored; float32 on the CPU, where "
        "float32 makes quantized weights plain, and fast.",
    ),
]
Kernels = Annotated[
    str,
    _model(
        "--kernels",
        metavar="WHICH",
        help="Metal kernels of our own: auto (those measured to win here), metal (all) or "
        "reference (none).",
    ),
]
TrustRemoteCode = Annotated[
    bool, _model("--trust-remote-code", help="Run Python code that the model brings.")
]
Prompt = Annotated[
    list[str] | None,
    _prompt(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="Repeatable; - reads stdin, as does a pipe without any -p.",
    ),
]
PromptFile = Annotated[
    Path | None,
    _prompt("--prompt-file", help="One prompt a line; blank lines are skipped."),
]
SystemPrompt = Annotated[str | None, _prompt("--system-prompt", help="For the chat template.")]
PrefillResponse = Annotated[
    str | None,
    _prompt("--prefill-response", metavar="TEXT", help="How the answer begins; the model goes on."),
]
ChatTemplateConfig = Annotated[
    str | None,
    _prompt(
        "--chat-template-config",
        metavar="JSON",
        help="""Keywords for the chat template: '{"enable_thinking": false}'.""",
    ),
]
ExtraEosToken = Annotated[
    list[str] | None,
    _sampling(
        "--extra-eos-token", metavar="TOKEN", help="One more token that ends it; repeatable."
    ),
]
IgnoreChatTemplate = Annotated[
    bool, _prompt("--ignore-chat-template", help="Feed the prompts as they are.")
]
MaxTokens = Annotated[
    int, _sampling("--max-tokens", "-m", help="Most tokens to generate, each prompt.")
]
Temp = Annotated[float, _sampling("--temp", "--temperature", help="Temperature; 0 is greedy.")]
TopP = Annotated[float, _sampling("--top-p", help="Nucleus, in (0, 1].")]
TopK = Annotated[int, _sampling("--top-k", help="Most tokens to keep; 0 keeps all.")]
MinP = Annotated[float, _sampling("--min-p", help="Least share of the best token's.")]
Seed = Annotated[int | None, _sampling("--seed", help="Same seed, same text, in any batch.")]
Stop = Annotated[
    list[str] | None, _sampling("--stop", metavar="TEXT", help="Text that ends it; repeatable.")
]
IgnoreEos = Annotated[bool, _sampling("--ignore-eos", help="Go on past end-of-sequence tokens.")]
EnableSpeculative = Annotated[
    bool | None,
    _speculation(
        "--enable-speculative/--no-speculative",
        help="Guess ahead with the draft model, which implies it.",
        show_default=False,
    ),
]
NumDraftTokens = Annotated[
    int,
    _speculation("--num-draft-tokens", help="Draft length; the maximum when adaptive."),
]
Adaptive = Annotated[
    bool,
    _speculation(
        "--adaptive/--no-adaptive",
        help="Choose the draft length step by step, by measured cost and acceptance.",
    ),
]
Compare = Annotated[
    bool,
    _speculation(
        "--compare",
        help="Run again without speculation: speeds of both; exit 1 if a token differs.",
    ),
]
BatchSize = Annotated[
    int, _batching("--batch-size", help="Most prompts decoded together, in rows.")
]
BatchTimeout = Annotated[
    float, _batching("--batch-timeout", help="Longest wait for a batch, in seconds.")
]
Batching = Annotated[
    bool, _batching("--batching/--no-batching", help="Together, or one at a time.")
]
PrefillStepSize = Annotated[
    int, _batching("--prefill-step-size", help="Most prompt tokens of a row a pass.")
]
MemoryLimit = Annotated[
    float | None,
    _batching(
        "--memory-limit",
        metavar="SIZE|SHARE",
        parser=memory_size,
        help="Most memory for models and K/V: 8GB, bytes, or a share of the device's (50%, 0.5). "
        "Requests wait where it is reached. Default: 0.9.",
    ),
]
PrefixCacheBytes = Annotated[
    int,
    _batching(
        "--prefix-cache-bytes",
        help="What prompts begin with is computed once and kept in so much memory; 0: never.",
    ),
]
PerformanceLog = Annotated[
    Path | None,
    _output("--performance-log", metavar="DIR", help="Write figures there as JSON lines."),
]
Verbose = Annotated[
    str,
    _output(
        "--verbose",
        metavar="BOOL",
        help="Frames and statistics (True), or the bare text (False).",
    ),
]
Quiet = Annotated[bool, _output("--quiet", "-q", help="The bare text and errors, nothing else.")]
NumSamples = Annotated[
    int,
    _sampling(
        "--num-samples",
        "-n",
        min=1,
        help="Texts for each prompt, with the seeds SEED, SEED + 1, ...; needs --temp.",
    ),
]
AsJson = Annotated[
    bool, _output("--json", help="One JSON object a prompt on stdout, nothing else.")
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

    @functools.wraps(command)
    def taking(**given: Any) -> None:
        flags = {name: given.pop(name) for name in FLAGS}
        command(flags=Flags(**_plain(flags)), **given)

    return _with_options(taking, command, "flags", defaults)


def take_given(command: Callable[..., None]) -> Callable[..., None]:
    """As :func:`take_flags`, but the parameter is ``given``: only what the user gave, by name."""

    @functools.wraps(command)
    def taking(**options: Any) -> None:
        flags = {name: options.pop(name) for name in FLAGS}
        given = {name: value for name, value in flags.items() if value not in (None, [])}
        command(given=_plain(given), **options)

    return _with_options(taking, command, "given", dict.fromkeys(FLAGS))


def _plain(flags: dict[str, Any]) -> dict[str, Any]:
    """Values of the types that ``Flags`` has."""
    for name in ("stop", "extra_eos_token"):
        if name in flags:
            flags[name] = tuple(flags[name] or ())
    if flags.get("adapter_path") is not None:
        flags["adapter_path"] = str(flags["adapter_path"])
    return flags


def _with_options(
    taking: Callable[..., None],
    command: Callable[..., None],
    place: str,
    defaults: dict[str, Any],
) -> Callable[..., None]:
    """``taking`` with the signature of ``command``, ``FLAGS`` in the place of one parameter."""
    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(command, eval_str=True).parameters.values():
        if own.name == place:
            parameters += [
                own.replace(name=name, default=defaults[name], annotation=kind)
                for name, kind in FLAGS.items()
            ]
        else:
            parameters.append(own)
    taking.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    taking.__annotations__ = {own.name: own.annotation for own in parameters}
    return taking
