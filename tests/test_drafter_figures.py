"""Each drafter's own figures: in results, statistics, events, logs and the closing lines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlx_spec import PerformanceLog, SpeculationConfig, batch_generate
from mlx_spec.cli.statistics import statistics_lines
from mlx_spec.control.report import StepReport
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.drafting import DrafterStats
from mlx_spec.events import RequestFinished, StepDone
from mlx_spec.metrics.log_reader import read_logs
from mlx_spec.metrics.summary import summarise
from mlx_spec.results import BatchResult
from tests.scenario import noisy_draft, target

PROMPTS = [[5, 6, 7, 8] * 6, [3, 1, 4, 1, 5, 9, 2, 6], [2, 7] * 9, [1]]


def made(listeners: Any = (), draft: str = "ngram+model") -> BatchResult:
    return batch_generate(
        target("llama"),
        None,
        PROMPTS,
        max_tokens=40,
        draft_model=noisy_draft("llama"),
        speculation=SpeculationConfig(draft=draft, adaptive=False, num_draft_tokens=4),
        listeners=listeners,
    )


def sums(parts: Any) -> dict[str, tuple[int, int]]:
    drafted: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    for part in parts:
        for name, (tried, kept) in part.items():
            drafted[name] += tried
            accepted[name] += kept
    return {name: (drafted[name], accepted[name]) for name in drafted}


def pairs(drafters: Any) -> dict[str, tuple[int, int]]:
    return {name: (own.drafted, own.accepted) for name, own in drafters.items()}


def test_the_same_figures_everywhere(tmp_path: Path) -> None:
    events: list[Any] = []
    with PerformanceLog(tmp_path) as log:
        batch = made([events.append, log])
    own = pairs(batch.stats.drafters)
    assert set(own) == {"ngram", "model"}
    assert all(drafted > accepted for drafted, accepted in own.values())
    assert own["model"][1] > 0
    assert sum(drafted for drafted, _ in own.values()) == batch.stats.drafted
    assert sum(accepted for _, accepted in own.values()) == batch.stats.accepted
    assert own == sums(pairs(result.drafters) for result in batch.results)
    assert own == sums(e.drafters for e in events if isinstance(e, StepDone))
    assert own == sums(e.drafters for e in events if isinstance(e, RequestFinished))
    logs, _ = read_logs(tmp_path)
    said = summarise(logs[0]).figures["by drafter"]
    assert all(
        f"{name} " in said and f" of {drafted:,}" in said for name, (drafted, _) in own.items()
    )
    took = [each.seconds for each in batch.stats.drafters.values()]
    assert 0 < sum(took) <= batch.stats.generation_time + 1e-9
    lines = statistics_lines(batch.stats, drafting=True)
    assert [line.split(":")[0] for line in lines[:5]] == [
        "Prompt",
        "Generation",
        "Peak memory",
        "Acceptance rate",
        "By drafter",
    ]


def test_a_draft_model_alone_needs_no_line_of_its_own() -> None:
    batch = made(draft="model")
    assert set(batch.stats.drafters) == {"model"}
    assert not [line for line in statistics_lines(batch.stats, True) if "By drafter" in line]


def test_a_step_is_shared_among_the_rows_that_had_a_draft() -> None:
    class Output:
        tokens = (1, 2)

        def __init__(self, source: str, drafted: int, accepted: int) -> None:
            self.source, self.drafted, self.accepted = source, drafted, accepted

    meter = StepMeter()
    outputs: Any = [
        Output("ngram", 4, 1),
        Output("model", 2, 2),
        Output("ngram", 2, 0),
        Output("", 0, 0),
    ]
    meter.step([4, 2, 2, 0], outputs, 3.0)
    assert meter.drafters == {
        "ngram": DrafterStats(6, 1, 2, 2.0),
        "model": DrafterStats(2, 2, 1, 1.0),
    }
    assert str(meter.drafters["ngram"]) == "16.7% (1 of 6)"


def test_a_report_of_one_drafter_says_nothing_of_the_others() -> None:
    rows: Any = [object()] * 4
    whole = StepReport(
        rows, [3, 2, 4, 0], [1, -1, 4, 0], 1.0, True, sources=["a", "b", "b", ""], longest=5
    )
    one, other = whole.of("a"), whole.of("b")
    assert (one.lengths, one.accepted, one.work.length) == ([3, 0, 0, 0], [1, -1, 0, 0], 3)
    assert (other.lengths, other.accepted, other.work.length) == ([0, 2, 4, 0], [0, -1, 4, 0], 4)
    plain = StepReport(rows, [0] * 4, [0] * 4, 1.0, True, sources=[""] * 4)
    assert plain.of("a") is plain


def test_mixed_up_sources_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: what one drafter guessed is written to the account of the other."""
    from mlx_spec.decoding.drafters.chain import ChainDrafter

    right = pairs(made().stats.drafters)
    joined = ChainDrafter._joined

    def mixed(self: ChainDrafter, *what: Any) -> Any:
        from dataclasses import replace

        draft = joined(self, *what)
        assert draft.sources is not None
        return replace(draft, sources=draft.sources[::-1])

    monkeypatch.setattr(ChainDrafter, "_joined", mixed)
    assert pairs(made().stats.drafters) != right
