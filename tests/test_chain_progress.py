"""One display for a whole chain: a line a stage, those to come and those left out among them."""

from __future__ import annotations

import io
from contextlib import nullcontext
from typing import Any

import pytest
from rich import progress
from rich.console import Console

from mlx_spec.pipeline import chain_progress
from mlx_spec.pipeline.chain_progress import ChainProgress
from mlx_spec.pipeline.stage_runner import Tally
from mlx_spec.results import GenerationStats

STAGES = ("1-filter", "2-classify", "3-generate")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    out = io.StringIO()

    def make(counted: bool = True) -> Any:
        return progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[figures]}"),
            console=Console(file=out, width=100, force_terminal=True),
            auto_refresh=False,
        )

    monkeypatch.setattr(chain_progress, "make_bar", make)
    return out


def last(screen: io.StringIO) -> list[str]:
    """The lines as they stand in the end."""
    text = screen.getvalue()
    return [line for line in text[text.rindex(STAGES[0]) :].splitlines() if line.strip()]


def test_all_stages_stay_on_the_screen(screen: io.StringIO) -> None:
    asked: list[str] = []
    with ChainProgress(STAGES) as chain:
        chain.skip(0, "done before")
        with chain.loading("loading a", lambda text: nullcontext(asked.append(text))):
            pass
        watch = chain.begin(1, 8)
        watch(Tally(written=8), GenerationStats)
        chain.begin(2, 5)
        with chain.loading("loading b", lambda text: nullcontext(asked.append(text))):
            chain.start().refresh()
            assert "loading b" in last(screen)[2]
        chain.begin(2, 5)(Tally(skipped=2, written=1), GenerationStats)
    first, second, third = last(screen)[:3]
    assert "done before" in first
    assert "8/8" in second
    assert "items/s" in second
    assert "3/5" in third
    assert asked == ["loading a"]  # before there was a line to say it on


def test_a_log_has_one_stage_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    with ChainProgress(STAGES) as chain:
        watch = chain.begin(1, 8)
        watch._every = 0.0
        watch(Tally(written=8), GenerationStats)
    assert "mlx-spec: stage 2 of 3, 2-classify: 8/8 records" in capsys.readouterr().err
    with ChainProgress(STAGES, quiet=True) as chain:
        watch = chain.begin(0, 8)
        watch._every = 0.0
        watch(Tally(written=8), GenerationStats)
    assert capsys.readouterr().err == ""
