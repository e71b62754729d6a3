"""``mlx-spec report``: what performance logs say, as a table and, with ``--out``, as charts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_spec.errors import InvalidRequest


def report(
    logs: Annotated[Path, typer.Argument(help="Folder of logs, or one file of it.")] = Path(
        "performance_logs"
    ),
    out: Annotated[
        Path | None, typer.Option("--out", help="Write charts (PNG) and report.html there.")
    ] = None,
    ttft_limit: Annotated[
        float | None,
        typer.Option("--ttft-limit", help="For goodput: most seconds to the first token."),
    ] = None,
    tpot_limit: Annotated[
        float | None,
        typer.Option("--tpot-limit", help="For goodput: most seconds per further token."),
    ] = None,
) -> None:
    """Show the runs that performance logs tell of."""
    from rich.console import Console

    from mlx_spec.metrics.goodput import Limits
    from mlx_spec.metrics.log_reader import read_logs
    from mlx_spec.metrics.report import check_extra, print_report, write_report
    from mlx_spec.metrics.summary import summarise

    if out is not None:
        check_extra()
    runs, problems = read_logs(logs.expanduser())
    if not runs:
        left_out = f"; left out: {'; '.join(map(str, problems))}" if problems else ""
        raise InvalidRequest(f"[report] {logs} holds no performance logs{left_out}")
    limits = Limits(ttft_limit, tpot_limit)
    summaries = [summarise(run, limits, number) for number, run in enumerate(runs, 1)]
    console = Console()
    print_report(console, summaries, problems)
    if out is not None:
        console.print(
            f"wrote {write_report(out.expanduser(), summaries, problems)}", soft_wrap=True
        )
