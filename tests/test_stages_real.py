"""A real instruct model tells texts apart: what docs/stages.md says stays true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real_models import smollm2_gguf

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> Path:
    return smollm2_gguf()


def run(model: Path, kind: str, source: Path, *options: str) -> list[dict[str, Any]]:
    """A stage's command in a process of its own, with the fast BLAS."""
    out = source.with_suffix(f".{kind}.jsonl")
    command = [sys.executable, "-m", "mlx_spec", kind, str(source), str(out), "--overwrite"]
    done = subprocess.run(
        [*command, "--model", str(model), "--batch-size", "16", *options],
        env={name: value for name, value in os.environ.items() if name != "MLX_SPEC_BLAS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_classify_names_the_topic_of_short_texts(model: Path, tmp_path: Path) -> None:
    """As shipped once, every text was "code": 25%."""
    lines = (ROOT / "examples/data/snippets.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "in.jsonl").write_text("".join(lines[:32:2]))
    rows = run(model, "classify", tmp_path / "in.jsonl", "--labels", "code,cooking,sports,finance")
    right = sum(row["label"] == row["domain"] for row in rows)
    assert right >= 15, [(row["domain"], row["label"], row["text"]) for row in rows]


@pytest.mark.slow
def test_align_flags_advertisements(model: Path, tmp_path: Path) -> None:
    lines = (ROOT / "tests/data/stages_heldout.jsonl").read_text().splitlines(keepends=True)
    adverts = [line for line in lines if '"advert"' in line][::2]
    (tmp_path / "in.jsonl").write_text("".join(adverts))
    words = ("--policy", "No advertising.", "--answers", "advertisement,information")
    rows = run(model, "align", tmp_path / "in.jsonl", *words)
    right = sum(row["flagged"] == (row["label"] == "yes") for row in rows)
    assert right >= 11, [(row["label"], row["policy_score"], row["text"]) for row in rows]


@pytest.mark.slow
def test_filter_answers_a_concrete_question(model: Path, tmp_path: Path) -> None:
    """Scored as yes or no, such questions were answered at chance."""
    lines = (ROOT / "tests/data/questions_heldout.jsonl").read_text().splitlines(keepends=True)
    asked = [line for line in lines if "an advertisement?" in line][::2]
    (tmp_path / "in.jsonl").write_text("".join(asked))
    question = ("--question", "Is this text an advertisement?")
    kept = [row["label"] for row in run(model, "filter", tmp_path / "in.jsonl", *question)]
    assert kept.count("yes") + 6 - kept.count("no") >= 11, kept
