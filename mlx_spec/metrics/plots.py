"""The charts of a report, each a PNG: one function a chart, all with the same colours by run.

Needs matplotlib (extra ``report``); uses its figure objects only, never the global state of
pyplot, so it runs in any thread and leaves no trace.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from mlx_spec.metrics.distribution import Percentiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlx_spec.metrics.report import RunSummary

MOST_RUNS = 6
# Okabe and Ito's colours: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT = "#1f2430", "#d9dde5"
MINUTES_FROM = 600.0  # seconds


def draw(summaries: list[RunSummary]) -> dict[str, bytes]:
    """Charts of the latest runs that have something to show: name -> PNG."""
    shown = [s for s in summaries if s.log.inference or s.log.requests][-MOST_RUNS:]
    if not shown:
        return {}
    charts: dict[str, Callable[[Axes, list[RunSummary]], None]] = {
        "throughput": _throughput,
        "batch_occupancy": _occupancy,
        "draft_length": _draft_length,
        "acceptance": _acceptance,
        "ttft": lambda axes, runs: _latency(axes, runs, "ttft", "Time to first token"),
        "itl": lambda axes, runs: _latency(axes, runs, "itl", "Inter-token latency"),
    }
    return {name: _png(chart, shown) for name, chart in charts.items()}


def _png(chart: Callable[[Axes, list[RunSummary]], None], runs: list[RunSummary]) -> bytes:
    figure = Figure(figsize=(7.2, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.title.set_color(INK)
    chart(axes, runs)
    if len(runs) == 1:
        axes.set_title(runs[0].name, loc="right", fontsize=8, color=INK)
    else:
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _series(axes: Axes, runs: list[RunSummary], field: str) -> None:
    """One line a run: ``field`` of the inference lines over time, broken where nothing ran."""
    longest = max((line["t"] for run in runs for line in run.log.inference), default=0.0)
    scale, unit = (60.0, "minutes") if longest > MINUTES_FROM else (1.0, "seconds")
    for run, colour in zip(runs, COLOURS, strict=False):
        times: list[float] = []
        values: list[float] = []
        end = None
        for line in run.log.inference:
            start = line["t"] - line["seconds"]
            if end is not None and start - end > 2 * line["seconds"]:
                times.append(end / scale)
                values.append(float("nan"))
            end = line["t"]
            times.append((start + end) / 2 / scale)
            values.append(line[field])
        marker = "o" if len(times) < 3 else None
        axes.plot(times, values, color=colour, linewidth=1.6, label=run.name, marker=marker)
    axes.set_xlabel(f"{unit} since the run began")
    axes.set_xlim(left=0)
    highest = max((line[field] for run in runs for line in run.log.inference), default=0.0)
    _from_zero(axes, highest)


def _from_zero(axes: Axes, highest: float) -> None:
    """Room for everything, and for a line at zero to be seen."""
    top = 1.08 * highest if highest > 0 else 1.0
    axes.set_ylim(-0.02 * top, top)


def _throughput(axes: Axes, runs: list[RunSummary]) -> None:
    _series(axes, runs, "tok_s")
    axes.set_title("Throughput", loc="left")
    axes.set_ylabel("generated tokens per second")


def _occupancy(axes: Axes, runs: list[RunSummary]) -> None:
    _series(axes, runs, "rows")
    sizes = sorted({line["batch_size"] for run in runs for line in run.log.inference})
    _from_zero(axes, max(sizes, default=1))
    for size in sizes:
        axes.axhline(size, color=INK, linewidth=0.8, linestyle=(0, (4, 4)))
        axes.annotate(
            f"batch size {size:g}",
            (1.0, size),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color=INK,
        )
    axes.set_title("Batch occupancy", loc="left")
    axes.set_ylabel("rows decoding (mean)")


def _draft_length(axes: Axes, runs: list[RunSummary]) -> None:
    _series(axes, runs, "draft_length")
    axes.set_title("Draft length", loc="left")
    axes.set_ylabel("draft tokens a step (mean)")


def _acceptance(axes: Axes, runs: list[RunSummary]) -> None:
    """A histogram over requests; runs beside each other in each bin."""
    known = [
        (run, colour, rates)
        for run, colour in zip(runs, COLOURS, strict=False)
        if (rates := [r["acceptance"] for r in run.log.requests if r.get("acceptance") is not None])
    ]
    axes.set_title("Acceptance by request", loc="left")
    axes.set_xlabel("accepted / drafted tokens")
    axes.set_ylabel("requests")
    axes.set_xlim(0, 1)
    axes.yaxis.get_major_locator().set_params(integer=True)
    if not known:
        _nothing(axes, "nothing was drafted")
        return
    edges: Any = [step / 20 for step in range(21)]
    axes.hist(
        [rates for _, _, rates in known],
        bins=edges,
        color=[colour for _, colour, _ in known],
        label=[run.name for run, _, _ in known],
        rwidth=0.9,
    )


def _latency(axes: Axes, runs: list[RunSummary], name: str, title: str) -> None:
    """Bars of p50, p90 and p99, runs beside each other."""
    axes.set_title(title, loc="left")
    axes.set_ylabel("milliseconds")
    known: list[Percentiles] = [getattr(run, name) for run in runs]
    if not any(p.count for p in known):
        _nothing(axes, "no request has ended")
        return
    width = 0.8 / len(runs)
    for place, (run, percentiles) in enumerate(zip(runs, known, strict=True)):
        values = [(v or 0.0) * 1e3 for v in (percentiles.p50, percentiles.p90, percentiles.p99)]
        at = [group + (place - (len(runs) - 1) / 2) * width for group in range(3)]
        bars = axes.bar(at, values, width * 0.92, color=COLOURS[place], label=run.name)
        labels = [f"{v:,.0f}" if v >= 100 else f"{v:.1f}" for v in values]
        axes.bar_label(bars, labels, fontsize=8 if len(runs) < 4 else 6, color=INK)
    axes.set_xticks(range(3), ["p50", "p90", "p99"])


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=INK)
    axes.set_yticks([])
