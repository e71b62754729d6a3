"""What ``mlx-spec generate`` shows: texts in order, statistics, the comparison."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from mlx_spec.cli.main import main
from mlx_spec.cli.statistics import comparison_lines, statistics_lines
from mlx_spec.cli.streaming import FRAME, OrderedPrinter
from mlx_spec.results import BatchResult, GenerationChunk, GenerationResult, GenerationStats

DEMO = ("generate", "--model", "demo", "--draft-model", "demo-draft")


def chunk(index: int, text: str, last: bool = False) -> GenerationChunk:
    return GenerationChunk(index, text, 0, False, "length" if last else None, 1, 1)


def test_texts_appear_in_order_and_the_first_one_live() -> None:
    out = io.StringIO()
    printer = OrderedPrinter(["p", "q", "r"], out)
    head = f"{FRAME}\n[prompt 1/3] p\n"
    steps = [
        (chunk(1, "B1"), head),
        (chunk(0, "A1"), f"{head}A1"),
        (chunk(2, "C1", last=True), f"{head}A1"),
        (chunk(0, "A2", last=True), f"{head}A1A2\n{FRAME}\n[prompt 2/3] q\nB1"),
        (chunk(1, "B2"), f"{head}A1A2\n{FRAME}\n[prompt 2/3] q\nB1B2"),
    ]
    for given, shown in steps:
        printer.add(given)
        assert out.getvalue() == shown
    printer.finish(["A1A2", "B1B2B3", "C1"])  # cut short: what was never given out as a chunk
    end = f"B3\n{FRAME}\n[prompt 3/3] r\nC1\n{FRAME}\n"
    assert out.getvalue() == steps[-1][1] + end


def test_an_empty_text_is_said() -> None:
    out = io.StringIO()
    OrderedPrinter(["p"], out).finish([""])
    assert out.getvalue() == f"{FRAME}\nNo text generated for this prompt\n{FRAME}\n"


def test_statistics_lines() -> None:
    stats = GenerationStats(
        prompt_tokens=10,
        generation_tokens=40,
        prompt_time=0.5,
        generation_time=2.0,
        peak_memory=1_500_000_000,
        drafted=30,
        accepted=15,
        row_steps=20,
        draft_lengths={0: 4, 3: 16},
        speculative_tps=21.0,
    )
    assert statistics_lines(stats, drafting=True) == [
        "Prompt: 10 tokens, 20.000 tokens-per-sec",
        "Generation: 40 tokens, 20.000 tokens-per-sec",
        "Peak memory: 1.500 GB",
        "Acceptance rate: 50.0% (15 of 30 draft tokens)",
        "Mean acceptance length: 2.00 tokens per verify pass",
        "Draft lengths: K=0: 4 steps, K=3: 16 steps",
        "Steps with a draft: 21.000 tokens-per-sec; without: too few such steps to tell",
    ]
    # What a constraint forces is drafted unasked.
    assert statistics_lines(stats, drafting=False) == statistics_lines(stats, drafting=True)
    stats = replace(stats, drafted=0, accepted=0, draft_lengths={0: 20})
    assert statistics_lines(stats, drafting=False)[3:] == ["Speculation: off"]
    assert statistics_lines(stats, drafting=True)[3].startswith("Acceptance rate: none (")


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([1, 2, 3], None),
        ([1, 9, 3], "prompt 1 differs from token 2 on"),
        ([1, 2], "prompt 1 differs from token 3 on"),
    ],
)
def test_comparison_finds_the_first_difference(ours: list[int], verdict: str | None) -> None:
    stats = GenerationStats(generation_tokens=3, generation_time=1.0)
    plain = GenerationResult("", [1, 2, 3], "length", 1, 3, 0.1, 1.0)
    lines, equal = comparison_lines(
        BatchResult([replace(plain, token_ids=ours)], stats), BatchResult([plain], stats)
    )
    assert equal is (verdict is None)
    assert (verdict or "all 3 identical") in lines[-1]
    assert "3 tokens are too few to compare" in lines[0]


def test_without_a_draft_the_same_is_done_one_at_a_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--model", "demo", "-p", "def a", "-p", "class B", "-m", "6", "--compare"]
    assert main(["generate", *options]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Together: .* tokens-per-sec; one at a time: .* \(\d+\.\d\dx\)", shown)
    assert "Tokens: all 12 identical together and one at a time" in shown


def test_compare_exits_1_when_tokens_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "mlx_spec.cli.generate_run.comparison_lines", lambda *_: (["differ"], False)
    )
    assert main([*DEMO, "-p", "a", "-m", "2", "--compare"]) == 1
    assert capsys.readouterr().out.endswith("differ\n")
