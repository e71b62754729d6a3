"""What ``mlx-spec bench`` shows, of results made up."""

from __future__ import annotations

import io

from rich.console import Console

from mlx_spec.bench.arms import AGAIN, PLAIN
from mlx_spec.bench.bandwidth import Bandwidth
from mlx_spec.bench.chart import draw_result
from mlx_spec.bench.comparing import TextDifference
from mlx_spec.bench.findings import Contender, Recommendation
from mlx_spec.bench.plan import Plan
from mlx_spec.bench.results import ArmResult, BenchResult, CellKey, CellResult
from mlx_spec.bench.rounds import Series
from mlx_spec.bench.table import print_result, shown_arms

KINDS = {"chat": 1.1, "code": 1.4}


def arm(
    name: str, *ratios: float, exact: bool = True, plain: float = 50.0, **more: object
) -> ArmResult:
    figures = [
        {
            "tok/s": plain * one,
            "tokens a pass": 1.5,
            "acceptance": 0.5,
            "peak": 1e9,
            "prompt tok/s": 9.0,
        }
        for one in ratios
    ]
    return ArmResult(name, Series(figures), ratios, exact, **more)  # type: ignore[arg-type]


def cell(batch: int, length: int, *arms: ArmResult) -> CellResult:
    own = (arm(PLAIN, 1.0, 1.0, 1.0), arm(AGAIN, 0.99, 1.01, 1.02), *arms)
    return CellResult(CellKey(None, batch, length), length + 3.0, 4, own, 0.8)


def result(*cells: CellResult, **more: object) -> BenchResult:
    known = {None: 10**9}
    return BenchResult("org/big", known, Bandwidth(1e9, 2e9), Plan(), cells, {}, **more)  # type: ignore[arg-type]


def shown(one: BenchResult) -> str:
    out = io.StringIO()
    print_result(Console(file=out, width=80), one)
    return out.getvalue()


def row(text: str, name: str) -> str:
    """The line of an arm, without what is only for the eye."""
    return " ".join(next(line for line in text.splitlines() if f" {name} " in line).split())


def test_of_mlx_lms_lengths_the_best_is_shown() -> None:
    others = [arm(f"mlx-lm small K={k}", r, exact=False) for k, r in ((2, 1.2), (4, 1.5), (6, 1.1))]
    own = cell(1, 128, arm("small K=3", 1.3), arm("small K=5", 1.4), *others)
    names = [one.name for one in shown_arms(own)]
    assert names == [PLAIN, AGAIN, "small K=3", "small K=5", "mlx-lm small K=4"]


def test_a_row_says_what_it_is_worth_and_what_was_said() -> None:
    tie, fault = TextDifference(0, 4, 0.01), TextDifference(2, 7, 3.0)
    arms = [
        arm("fast", 1.4, 1.5, 1.6),
        arm("slow", 0.8, 0.9, 0.7, differences=(tie,)),
        arm("other", 1.01, 1.0, 1.02, differences=(tie, fault)),
        arm("mlx-lm", 1.0, 0.9, 0.9, exact=False, compared=False),
    ]
    text = shown(result(cell(1, 128, *arms)))
    assert row(text, "fast") == "fast 75.0 + 1.50 (1.40-1.60) 1.50 same"
    assert row(text, "slow").endswith("- 0.80 (0.70-0.90) 1.50 1 tie")
    assert row(text, "mlx-lm").endswith("samples")
    assert row(text, "other").endswith("= 1.01 (1.00-1.02) 1.50 2 differ")
    assert "other, 1 at a time: prompt 3 differs from plain decoding from token 8 on" in text
    assert text.count(" differs from ") == 1
    assert "80% (1 at a time)" in text
    assert "2.0% here" in text
    assert "busy" not in text


def test_noise_is_said_and_what_was_interrupted() -> None:
    loud = CellResult(
        CellKey(None, 1, 128), 128.0, 4, (arm(PLAIN, 1.0, 1.0), arm(AGAIN, 0.7, 1.4)), 1.2
    )
    text = shown(result(loud, interrupted=True))
    assert "the machine was busy" in text
    assert "interrupted: of whole rounds only" in text
    assert "medians of 2 rounds (" in text
    assert "(a guess: it was too busy" in text
    assert "above 100% they come from the processor's cache" in text


def test_kinds_of_prompts_have_a_table_where_one_runs_at_a_time() -> None:
    own = result(
        CellResult(
            CellKey(None, 1, 128),
            128.0,
            4,
            (arm(PLAIN, 1.0, by_kind=KINDS), arm("fast", 1.2, by_kind=KINDS)),
            0.8,
        )
    )
    text = shown(own)
    assert "by kind of prompt" in text
    assert "128 fast 1.10 1.40" in " ".join(text.split())
    assert "by kind" not in shown(result(cell(4, 128)))


def test_recommendations_are_words_and_a_line_to_paste() -> None:
    head = Contender("head", drafts=True, models=1)
    told = (
        (Recommendation(None, "one", 1, head, 1.5, 75.0), "mlx-spec generate --model m"),
        (
            Recommendation("4", "many", 8, Contender(PLAIN), 1.0, 300.0, 4.0, True),
            "mlx-spec batch IN.jsonl OUT.jsonl",
        ),
    )
    text = shown(result(cell(1, 128), recommended=told))
    assert "one prompt at a time: 75.0 tok/s, 1.50 times plain decoding" in text
    assert "many prompts: 8 at a time, 300.0 tok/s, 4.0 times one at a time" in text
    assert "quantized: 4 (another text)" in text
    assert "\n    mlx-spec generate --model m\n" in text
    assert "try still larger ones" in text


def test_a_chart_has_all_arms_and_comes_out_the_same() -> None:
    cells = [
        cell(batch, length, arm("fast", 1.2, 1.3, 1.4), arm("mlx-lm", 0.9, 1.0, 1.0, exact=False))
        for length in (16, 128)
        for batch in (1, 4)
    ]
    picture = draw_result(result(*cells))
    assert picture == draw_result(result(*cells))
    text = picture.decode()
    assert text.startswith("<?xml")
    assert text.count("<!-- fast -->") == 1  # one legend for all
    assert text.count("<!-- big, prompts of") == 2
