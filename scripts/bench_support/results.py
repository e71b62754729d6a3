"""What a benchmark leaves behind: ``docs/results/NAME.json``, of which the page is made.

A record has the tables as they were printed, the raw figures, and what they were measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx_spec.model  # noqa: F401  (the fast BLAS is loaded before mlx)
from mlx_spec.platform import describe

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Table:
    """A table in words: a title, a header, and rows of cells."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        lines = (self.header, ["---"] * len(self.header), *self.rows)
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Record:
    """One run of a benchmark.

    Attributes:
        command: that made it.
        date: when, as ``2026-11-27``.
        engine: the commit of this repository that was measured.
        machine: what it ran on, and versions, by name.
        tables: what was printed.
        results: the raw figures.
        note: what a reader must know of this run.
    """

    command: str
    date: str
    engine: str
    machine: dict[str, str]
    tables: list[Table]
    results: Any = None
    note: str = ""

    @classmethod
    def read(cls, path: Path) -> Record:
        """From its file."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**fields, "tables": [Table(**table) for table in fields["tables"]]})

    def write(self, path: Path) -> None:
        """To a file, at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


_printed: list[Table] = []


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table; :func:`finish` puts it into the record."""
    cells = [[str(cell) for cell in row] for row in rows]
    _printed.append(Table(title, list(header), cells))
    print(f"\n### {title}\n\n{_printed[-1]}\n", flush=True)


def add_save(parser: argparse.ArgumentParser) -> None:
    """The option to keep what is measured for the page."""
    parser.add_argument(
        "--save", metavar="NAME", help="write docs/results/NAME.json, of which the page is made"
    )


def finish(options: argparse.Namespace, results: Any) -> None:
    """Print all as one JSON line, and write the record where that is asked for."""
    shown = {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items()}
    print(json.dumps({"machine": machine(), "options": shown, "results": results}), flush=True)
    if options.save:
        words = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
        command = " ".join(["python", f"scripts/{Path(sys.argv[0]).name}", *words])
        engine = _engine()
        note = "One round." if getattr(options, "rounds", None) == 1 else ""
        today = date.today().isoformat()
        record = Record(command, today, engine, machine(), list(_printed), results, note)
        record.write(RESULTS / f"{options.save}.json")


def machine() -> dict[str, str]:
    """What this runs on."""
    found = describe()
    path = found.blas.path if found.blas.fast else None
    if found.backend != "cpu":
        device, library = f"{found.backend}, {found.device}", ""
    else:
        device, library = "cpu", Path(path).resolve().name if path else "MLX's own"
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "BLAS": library,
        "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"),
        "mlx-spec": version("mlx-spec"),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name, or of a Mac its chip."""
    try:
        if sys.platform == "darwin":
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(
            line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line
        )
    except (OSError, subprocess.SubprocessError, StopIteration):
        return platform.processor() or platform.machine()


def _engine() -> str:
    """The commit that is checked out, and whether files differ from it."""
    try:
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
        made = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT)
        return made.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
