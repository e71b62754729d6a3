"""Two real checkpoints, straight from their ``.gguf``: what random weights cannot stand for.

In a process of its own each, with the fast BLAS, as people run them. Long: ``tests/real_run.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real_models import gemma3_gguf, smollm2_gguf

ROOT = Path(__file__).parent.parent
WINDOW = 512


def run(model: str, out: Path, **sizes: int) -> dict[str, Any]:
    """The report of ``tests.real_run``."""
    options = [f"--{name}={size}" for name, size in sizes.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.real_run", model, f"--out={out}", *options],
        env={name: value for name, value in os.environ.items() if name != "MLX_SPEC_BLAS"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def check(rows: list[dict[str, Any]]) -> None:
    """Every token is mlx-lm's, or as likely as it; guesses were right and wrong."""
    assert [row["wrong"] for row in rows] == [[] for _ in rows], rows
    assert all(row["equal"] + len(row["near_ties"]) == row["tokens"] for row in rows), rows
    assert sum(len(row["near_ties"]) for row in rows) <= 1, rows
    assert 0 < sum(row["accepted"] for row in rows) < sum(row["drafted"] for row in rows)


@pytest.mark.slow
def test_smollm2_says_what_it_says_alone_and_why_the_sky_is_blue(tmp_path: Path) -> None:
    smollm2_gguf()
    report = run("smollm2", tmp_path / "report.json", prompt=60, tokens=16)
    check(report["rows"])
    assert "scatter" in report["answer"], report["answer"]


@pytest.mark.slow
def test_gemma_3_says_what_it_says_alone_past_its_window(tmp_path: Path) -> None:
    """A row that begins behind the window, and rows that pass it while they decode."""
    gemma3_gguf()
    sizes = {"prompt": WINDOW + 8, "tokens": 16, "rows": 3, "slots": 2}
    rows = run("gemma3", tmp_path / "report.json", **sizes)["rows"]
    check(rows)
    assert any(row["prompt"] < WINDOW < row["prompt"] + row["tokens"] for row in rows)
    assert any(row["prompt"] > WINDOW for row in rows)
