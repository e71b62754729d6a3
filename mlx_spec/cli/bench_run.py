"""One run of ``mlx-spec bench``, its options checked: measure, show, write."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_spec.cli.bench_line import BenchLine
from mlx_spec.cli.notes import note, say_models
from mlx_spec.errors import OutputError

if TYPE_CHECKING:
    from mlx_spec.bench.options import BenchOptions
    from mlx_spec.bench.results import BenchResult
    from mlx_spec.pipeline.flags import Flags


def run_bench(
    options: BenchOptions, flags: Flags, out: Path | None, *, as_json: bool, quiet: bool
) -> int:
    """Measure and show; returns the exit code.

    Raises:
        MlxSpecError: options that do not go together, a model that cannot be loaded, a folder
            that cannot be written.
    """
    if out is not None:
        from mlx_spec.metrics.report import check_extra

        check_extra()
        _make(out)
    if not quiet:
        say_models(flags)
    line = BenchLine(quiet)
    with line.loading("starting"):
        from mlx_spec.bench.course import BenchCourse
        from mlx_spec.platform import describe
    machine = describe()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    line.tell(f"{machine.device}, {machine.cpu_count} processors, {machine.backend}; {versions}")
    try:
        result = BenchCourse(options, flags, line).run()
    except KeyboardInterrupt:
        line.close()
        line.tell("interrupted before the first round was over: nothing is known yet")
        raise
    finally:
        line.close()
    _show(result, as_json)
    if out is not None:
        _write(result, out, quiet)
    if not result.equal:
        note("a text differs from plain decoding's, and not by a near tie: please report this")
    return 130 if result.interrupted else 0 if result.equal else 1


def _show(result: BenchResult, as_json: bool) -> None:
    if as_json:
        from mlx_spec.bench.record import record_of

        print(json.dumps(record_of(result), indent=2))
        return
    from rich.console import Console

    from mlx_spec.bench.table import print_result

    print_result(Console(), result)


def _make(folder: Path) -> None:
    """The folder, and whether it takes files, before minutes are spent."""
    made = folder.expanduser()
    try:
        made.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=made):
            pass
    except OSError as error:
        raise OutputError(f"[bench] --out {folder}: {error.strerror}") from error


def _write(result: BenchResult, out: Path, quiet: bool) -> None:
    from mlx_spec.bench.chart import draw_result
    from mlx_spec.bench.record import record_of

    folder = out.expanduser()
    try:
        (folder / "bench.json").write_text(
            json.dumps(record_of(result), indent=2) + "\n", encoding="utf-8"
        )
        (folder / "bench.svg").write_bytes(draw_result(result))
    except OSError as error:
        raise OutputError(f"[bench] --out {out}: {error.strerror}") from error
    if not quiet:
        note(f"wrote {folder / 'bench.json'} and bench.svg")
