"""The charts of a report: what their axes say, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_spec.metrics import plots
from mlx_spec.metrics.log_reader import read_logs
from mlx_spec.metrics.summary import summarise
from tests.test_report import HEADER, inference, request, write


def charts_of(folder: Path, *records: Any) -> dict[str, Any]:
    """The axes of every chart of a log with these lines."""
    write(folder / "a.jsonl", HEADER, *records)
    logs, _ = read_logs(folder)
    axes = {}
    for name, fill in plots.CHARTS.items():
        chart = plots.Chart(plots.DARK, [summarise(log) for log in logs])
        fill(chart)
        assert chart.png().startswith(b"\x89PNG")
        axes[name] = chart.axes
    return axes


def test_axes_say_what_they_show_and_in_which_unit(tmp_path: Path) -> None:
    charts = charts_of(tmp_path, inference(700.0), request(1.0, ttft=12.0), request(2.0, ttft=11.0))
    said = {name: (axes.get_xlabel(), axes.get_ylabel()) for name, axes in charts.items()}
    assert said["throughput"] == (
        "time since the run began (minutes)",
        "generated tokens per second",
    )
    assert said["batch_occupancy"][1] == "rows decoding (mean)"
    assert said["draft_length"][1] == "draft tokens per step (mean)"
    assert said["acceptance"] == ("accepted of the drafted tokens", "requests")
    assert said["ttft"] == ("percentile (requests: 2)", "seconds")
    assert said["itl"] == ("percentile (gaps between tokens: 10)", "milliseconds")
    bars = [round(bar.get_height(), 2) for bar in charts["ttft"].patches]
    assert bars == [11.5, 11.9, 11.99]


def test_one_line_of_a_log_is_a_stretch_of_time_not_a_point(tmp_path: Path) -> None:
    charts = charts_of(tmp_path, inference(0.75), inference(9.5, tok_s=40.0))
    (line,) = charts["throughput"].lines
    xs, ys = line.get_data()
    # Half a second each, and nothing drawn where nothing ran.
    assert list(xs) == [0.25, 0.75, 0.75, 9.0, 9.5]
    assert list(ys)[:2] == [100.0, 100.0]
    assert ys[2] != ys[2]
    assert list(ys)[3:] == [40.0, 40.0]
