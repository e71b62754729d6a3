"""The charts of a report, each a PNG: one function a chart, all with the same colours by run.

Every chart is drawn for light and for dark surroundings, with a background of its own: a picture
without one is unreadable on whichever it was not made for.

Needs matplotlib (extra ``report``); uses its figure objects only, never the global state of
pyplot, so it runs in any thread and leaves no trace.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from mlx_spec.metrics.distribution import Percentiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlx_spec.metrics.summary import RunSummary

MOST_RUNS = 6
MINUTES_FROM = 600.0  # seconds
NARROW = 40  # characters of a run's name, up to which two stand side by side
SECONDS_FROM = 10.0  # where milliseconds become too many digits
SHORTEST_PAUSE = 0.5  # seconds; the log counts shorter ones as part of a line


@dataclass(frozen=True)
class Theme:
    """The colours of a chart; the page's style sheet has the same ones."""

    paper: str
    ink: str
    faint: str
    runs: tuple[str, ...]


# Okabe and Ito's colours: told apart by colour-blind readers too; on dark the light ones first.
LIGHT = Theme(
    "#ffffff",
    "#1f2430",
    "#d9dde5",
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
)
DARK = Theme(
    "#161a22",
    "#dfe3ec",
    "#363d4b",
    ("#56B4E9", "#E69F00", "#2BC49A", "#E79CC5", "#F0E442", "#F2803A"),
)


def dress(axes: Axes, theme: Theme) -> None:
    """The look that all our charts have."""
    axes.set_facecolor(theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)
    axes.tick_params(colors=theme.ink)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


class Chart:
    """One chart to draw on: its axes and the theme, with what all charts need.

    Args:
        theme: colours.
        runs: what is shown, at most ``MOST_RUNS``.
    """

    def __init__(self, theme: Theme, runs: list[RunSummary]) -> None:
        self.theme, self.runs = theme, runs
        self._figure = Figure(
            figsize=(7.2, 4.0), dpi=130, layout="constrained", facecolor=theme.paper
        )
        self.axes: Axes = self._figure.subplots()
        dress(self.axes, theme)

    def label(self, title: str, x: str, y: str) -> None:
        """Say what it shows and in which units."""
        self.axes.set_title(title, loc="left", color=self.theme.ink)
        self.axes.set_xlabel(x, color=self.theme.ink)
        self.axes.set_ylabel(y, color=self.theme.ink)

    def say(self, text: str) -> None:
        """Words in the place of data."""
        axes = self.axes
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=self.theme.ink)
        axes.set_yticks([])

    def png(self) -> bytes:
        """The picture, with the runs' names."""
        ink = self.theme.ink
        if len(self.runs) == 1:
            self.axes.set_title(self.runs[0].name, loc="right", fontsize=8, color=ink)
        else:
            handles, labels = self.axes.get_legend_handles_labels()
            if handles:
                self._figure.legend(
                    handles,
                    labels,
                    loc="outside lower center",
                    ncols=1 if any(len(name) > NARROW for name in labels) else 2,
                    frameon=False,
                    labelcolor=ink,
                )
        out = io.BytesIO()
        self._figure.savefig(out, format="png")
        return out.getvalue()


def draw(summaries: list[RunSummary], theme: Theme = LIGHT) -> dict[str, bytes]:
    """Charts of the latest runs that have something to show: name -> PNG."""
    shown = [s for s in summaries if s.log.inference or s.log.requests][-MOST_RUNS:]
    if not shown:
        return {}
    pictures = {}
    for name, fill in CHARTS.items():
        chart = Chart(theme, shown)
        fill(chart)
        pictures[name] = chart.png()
    return pictures


def _series(chart: Chart, field: str) -> str:
    """``field`` of the inference lines over time, one step a line; returns the axis' words.

    A line of the log covers a stretch of time, and so it is drawn; a pause is a gap.
    """
    axes = chart.axes
    longest = max((line["t"] for run in chart.runs for line in run.log.inference), default=0.0)
    scale, unit = (60.0, "minutes") if longest > MINUTES_FROM else (1.0, "seconds")
    for run, colour in zip(chart.runs, chart.theme.runs, strict=False):
        times: list[float] = []
        values: list[float] = []
        end = None
        for line in run.log.inference:
            start = line["start"]
            if end is not None and start - end > SHORTEST_PAUSE:
                times.append(end / scale)
                values.append(float("nan"))
            end = max(start, line["t"])
            times += [start / scale, end / scale]
            values += [line[field]] * 2
        axes.plot(times, values, color=colour, linewidth=1.8, label=run.name)
    axes.set_xlim(left=0)
    highest = max((line[field] for run in chart.runs for line in run.log.inference), default=0.0)
    _from_zero(axes, highest)
    return f"time since the run began ({unit})"


def _from_zero(axes: Axes, highest: float) -> None:
    """Room for everything, and for a line at zero to be seen."""
    top = 1.08 * highest if highest > 0 else 1.0
    axes.set_ylim(-0.02 * top, top)


def _throughput(chart: Chart) -> None:
    time = _series(chart, "tok_s")
    chart.label("Throughput", time, "generated tokens per second")


def _occupancy(chart: Chart) -> None:
    axes, ink = chart.axes, chart.theme.ink
    time = _series(chart, "rows")
    chart.label("Batch occupancy", time, "rows decoding (mean)")
    sizes = sorted({line["batch_size"] for run in chart.runs for line in run.log.inference})
    _from_zero(axes, max(sizes, default=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for size in sizes:
        axes.axhline(size, color=ink, linewidth=0.8, linestyle=(0, (4, 4)))
        axes.annotate(
            f"batch size {size:g}",
            (1.0, size),
            xytext=(0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color=ink,
        )


def _draft_length(chart: Chart) -> None:
    time = _series(chart, "draft_length")
    chart.label("Draft length", time, "draft tokens per step (mean)")
    # A token or less is next to nothing, and should look like it.
    _from_zero(chart.axes, max(1.0, chart.axes.dataLim.y1))


def _acceptance(chart: Chart) -> None:
    """A histogram over requests; runs beside each other in each bin."""
    axes = chart.axes
    known = [
        (run, colour, rates)
        for run, colour in zip(chart.runs, chart.theme.runs, strict=False)
        if (rates := [r["acceptance"] for r in run.log.requests if r.get("acceptance") is not None])
    ]
    chart.label("Acceptance by request", "accepted of the drafted tokens", "requests")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if not known:
        chart.say("nothing was drafted")
        return
    edges: Any = [step / 20 for step in range(21)]
    axes.hist(
        [rates for _, _, rates in known],
        bins=edges,
        color=[colour for _, colour, _ in known],
        label=[run.name for run, _, _ in known],
        rwidth=0.9,
    )


def _ttft(chart: Chart) -> None:
    known = [run.ttft for run in chart.runs]
    _latency(chart, known, "Time to first token", "requests")


def _itl(chart: Chart) -> None:
    known = [run.itl for run in chart.runs]
    _latency(chart, known, "Inter-token latency", "gaps between tokens")


def _latency(chart: Chart, known: list[Percentiles], title: str, things: str) -> None:
    """Bars of p50, p90 and p99, runs beside each other; ``things`` were timed."""
    axes, theme = chart.axes, chart.theme
    counts = ", ".join(f"{p.count:,}" for p in known)
    scale, unit = _unit(known)
    chart.label(title, f"percentile ({things}: {counts})", unit)
    if not any(p.count for p in known):
        chart.say("nothing was timed")
        return
    width = 0.8 / len(known)
    for place, (run, percentiles) in enumerate(zip(chart.runs, known, strict=True)):
        seconds = (percentiles.p50, percentiles.p90, percentiles.p99)
        values = [(v or 0.0) * scale for v in seconds]
        at = [group + (place - (len(known) - 1) / 2) * width for group in range(3)]
        bars = axes.bar(at, values, width * 0.92, color=theme.runs[place], label=run.name)
        axes.bar_label(
            bars,
            [_short(v) for v in values],
            padding=2,
            fontsize=9 if len(known) < 4 else 6,
            color=theme.ink,
        )
    axes.set_xticks(range(3), ["p50", "p90", "p99"])
    axes.margins(y=0.1)  # for the numbers on top
    axes.set_ylim(bottom=0)


def _unit(known: list[Percentiles]) -> tuple[float, str]:
    """Factor and name of the unit in which all of them have few digits, and some."""
    least = min((p.p50 for p in known if p.p50 is not None), default=0.0)
    most = max((p.p99 for p in known if p.p99 is not None), default=0.0)
    if most >= SECONDS_FROM and least >= SECONDS_FROM / 100:
        return 1.0, "seconds"
    return 1e3, "milliseconds"


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


CHARTS: dict[str, Callable[[Chart], None]] = {
    "throughput": _throughput,
    "batch_occupancy": _occupancy,
    "draft_length": _draft_length,
    "acceptance": _acceptance,
    "ttft": _ttft,
    "itl": _itl,
}
"""What a report shows, in this order."""
