"""``mlx-spec bench``: how fast a model is on this machine, which drafts pay, and what to type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_spec.bench.options import BenchOptions
from mlx_spec.cli.bench_run import run_bench
from mlx_spec.cli.parameters import takes
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.options import options_of

# Of the options that all commands take: those that hold for every arm.
_COMMON = (
    "model",
    "adapter_path",
    "revision",
    "dtype",
    "set",
    "gguf_requantize",
    "trust_remote_code",
    "kernels",
    "system_prompt",
    "prefill_response",
    "ignore_chat_template",
    "chat_template_config",
    "temp",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "num_draft_tokens",
    "adaptive",
    "memory_limit",
    "prefill_step_size",
    "kv_bits",
    "kv_group_size",
    "quantized_kv_start",
    "max_kv_size",
)

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Write bench.json and the chart bench.svg there.",
        rich_help_panel="Output",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="One JSON object on stdout, nothing else.", rich_help_panel="Output"
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel="Output"),
]


@takes("wanted", BenchOptions)
@takes("flags", Flags, without=set(options_of(Flags)) - set(_COMMON))
def bench(
    *,
    flags: Flags,
    wanted: BenchOptions,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on this machine, with and without drafts, and say which flags to use.

    Everything runs in turn, several times: plain decoding, the same again (how loud the noise is),
    and each way to draft; all texts are compared byte for byte. It takes about two minutes unless
    told otherwise, says first how long, and shows what it knows when interrupted.
    """
    raise typer.Exit(run_bench(wanted, flags, out, as_json=as_json, quiet=quiet))
