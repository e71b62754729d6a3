"""The benchmarks' page is made of their records, and the open-loop benchmark runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What scripts import."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.mark.usefixtures("scripts")
def test_the_page_is_what_its_records_say(tmp_path: Path) -> None:
    """Run ``python scripts/make_benchmarks.py`` where this fails."""
    import make_benchmarks

    made, charts = tmp_path / "benchmarks.md", tmp_path / "charts"
    make_benchmarks.make(made, charts)
    page = made.read_text(encoding="utf-8")
    assert page == make_benchmarks.PAGE.read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(results/charts/([\w.-]+)\)", page))
    assert shown == {path.name for path in charts.iterdir()}
    assert shown == {path.name for path in make_benchmarks.CHARTS.iterdir()}
    assert len(shown) > 5


@pytest.mark.usefixtures("scripts")
def test_every_record_is_shown_and_can_be_measured_again() -> None:
    """No record that nobody renders, no command of a script that is gone."""
    import make_benchmarks

    commands = make_benchmarks.commands("question.jsonl")
    for name, command in commands.items():
        assert (ROOT / command.split()[0]).exists(), command
        assert command.endswith(f"--save {name}")
    assert {path.stem for path in make_benchmarks.RESULTS.glob("*.json")} <= set(commands)


@pytest.mark.usefixtures("scripts")
def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    from bench_support.charts import number
    from bench_support.results import Record, Table

    table = Table("T", ["a", "b"], [["x", "1,234.5 (1-2)"], ["y", "**0.97**"]])
    record = Record("python x", "2026-11-27", "abc", {"cores": "2"}, [table], {"raw": [1.5]})
    record.write(tmp_path / "x.json")
    assert Record.read(tmp_path / "x.json") == record
    assert [number(line[1]) for line in table.rows] == [1234.5, 0.97]
    assert number("none") is None


@pytest.mark.usefixtures("scripts")
def test_open_loop_load_serves_all_alike() -> None:
    """The quick mode, on the embedded pair: arrivals, prompts and answers are the same for all."""
    import bench_load

    options = bench_load.parse(["--quick", "--draft", "ngram", "model"])
    options.draft_model = "demo-draft"
    options.requests, options.longest, options.long, options.behind = 4, 60, 50, 80
    found: dict[str, Any] = bench_load.run(options)
    methods = ["mlx-lm BatchGenerator", "ours plain", "ours, ngram", "ours, model"]
    assert list(found["load"]) == methods
    for one in found["load"].values():
        assert one["alike"] == 1.0
        assert one["tok/s"] > 0
        assert one["TTFT p50"] <= one["TTFT p95"] <= one["TTFT p99"]
        assert one["ITL p50"] <= one["ITL p99"]
    assert set(found["behind"]) == set(methods[:2])


@pytest.mark.usefixtures("scripts")
def test_arrivals_are_what_the_seed_makes_them() -> None:
    from bench_support.open_loop import Served, alike, figures, poisson

    arrivals = poisson([[1, 2]] * 400, rate=4.0, mean=20, most=60, seed=5)
    assert arrivals == poisson([[1, 2]] * 400, rate=4.0, mean=20, most=60, seed=5)
    assert arrivals[0].at == 0.0
    assert arrivals[-1].at == pytest.approx(100, rel=0.2)
    assert {4, 60} <= {one.tokens for one in arrivals}
    served = [Served(1.0, [1.5, 1.7, 1.7, 2.5], [1, 2, 3, 4]), Served(2.0, [3.0], [5])]
    made = figures(served)
    assert made["tok/s"] == 5 / 2.0
    assert (made["TTFT p50"], made["ITL p99"]) == (1000.0, pytest.approx(800.0))
    assert alike(served, [served[0], Served()]) == 0.5
