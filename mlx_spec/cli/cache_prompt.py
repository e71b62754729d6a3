"""``mlx-spec cache-prompt``: read a long prompt once, and keep what the model made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_spec.cli.new_files import check_writable
from mlx_spec.cli.notes import note, say_models, status
from mlx_spec.cli.parameters import takes
from mlx_spec.cli.prompts import read_prompts
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.options import options_of

# Of the options that all commands take: which model, and how a prompt is put to it.
_OPTIONS = (
    "model",
    "adapter_path",
    "revision",
    "dtype",
    "quantize",
    "set",
    "gguf_requantize",
    "trust_remote_code",
    "system_prompt",
    "ignore_chat_template",
    "chat_template_config",
    "prefill_step_size",
    "memory_limit",
    "kv_bits",
    "kv_group_size",
    "quantized_kv_start",
    "max_kv_size",
)

Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", "-p", metavar="TEXT", help="- reads stdin, as does a pipe without it."
    ),
]
Out = Annotated[
    Path, typer.Option("--prompt-cache-file", metavar="FILE", help="To be made: a .safetensors.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")]


@takes("flags", Flags, without=set(options_of(Flags)) - set(_OPTIONS))
def cache_prompt(
    *, prompt_cache_file: Out, prompt: Prompt = None, flags: Flags, quiet: Quiet = False
) -> None:
    """Read a long prompt once; `generate --prompt-cache-file` goes on behind it.

    The file is mlx-lm's: mlx_lm.generate takes it, and mlx_lm.cache_prompt makes such.
    """
    if prompt_cache_file.suffix != ".safetensors":
        raise InvalidRequest(
            f"[cache-prompt] --prompt-cache-file {prompt_cache_file}, expected FILE.safetensors"
        )
    check_writable(prompt_cache_file, f"[cache-prompt] --prompt-cache-file {prompt_cache_file}")
    texts = read_prompts([] if prompt is None else [prompt], None)
    if not texts:
        raise InvalidRequest("[cache-prompt] no prompt; give --prompt, or pipe one in")
    if not quiet:
        say_models(flags)
    with status(f"loading {flags.target}", quiet):
        from mlx_spec.batching.read_prompt import first_ids, read_prompt
        from mlx_spec.model.loader import load
        from mlx_spec.model.prompt_cache import write_prompt_cache

        model, tokenizer = load(flags.target, config=flags.loading)
    tokens = first_ids(tokenizer, texts[0], flags.chat(tokenizer))
    with status(f"reading {len(tokens):,} tokens", quiet):
        cache = read_prompt(model, tokens, flags.target, flags.batches)
        write_prompt_cache(prompt_cache_file, cache, model)
    if not quiet:
        size = prompt_cache_file.expanduser().stat().st_size
        note(f"{prompt_cache_file}: {len(tokens):,} tokens, {size / 1e6:,.1f} MB")
