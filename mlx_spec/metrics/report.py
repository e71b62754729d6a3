"""From performance logs to a table on the terminal and a folder of charts with one HTML page.

``summarise`` turns a run's lines into labelled figures; the terminal and the page show the same.
The charts live in ``plots``; they need the extra ``report`` (matplotlib), the table does not.
"""

from __future__ import annotations

import base64
import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_spec.errors import MlxSpecError
from mlx_spec.metrics.distribution import Percentiles, bucket_value
from mlx_spec.metrics.log_reader import Problem, RunLog
from mlx_spec.metrics.recorder import Goodput

if TYPE_CHECKING:
    from rich.console import Console

NONE = "-"


@dataclass(frozen=True)
class Limits:
    """What a request must meet to count as goodput, in seconds; None for no such limit."""

    ttft: float | None = None
    tpot: float | None = None

    def __bool__(self) -> bool:
        return self.ttft is not None or self.tpot is not None


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        name: for charts and headings.
        log: its lines.
        ttft, itl, tpot, queue_time: percentiles, in seconds.
        figures: label -> text, in the order in which to show them.
        stages: one row a stage: name, items, items/s, errors, seconds.
    """

    name: str
    log: RunLog
    ttft: Percentiles
    itl: Percentiles
    tpot: Percentiles
    queue_time: Percentiles
    figures: dict[str, str]
    stages: list[tuple[str, str, str, str, str]]


def summarise(log: RunLog, limits: Limits = Limits()) -> RunSummary:
    """A run's figures."""
    latencies = {
        name: Percentiles.of(r[name] for r in log.requests if r.get(name) is not None)
        for name in ("ttft", "tpot", "queue_time")
    }
    gaps: Counter[float] = Counter()
    for line in log.inference:
        for number, count in line["itl"].items():
            gaps[bucket_value(int(number))] += count
    itl = Percentiles.of_counts(gaps)
    figures = {
        **_origin(log),
        **_throughput(log),
        **_drafting(log),
        "TTFT p50 / p90 / p99": _times(latencies["ttft"]),
        "ITL p50 / p90 / p99": _times(itl),
        "TPOT p50 / p90 / p99": _times(latencies["tpot"]),
        "queue time p50 / p90 / p99": _times(latencies["queue_time"]),
    }
    if limits:
        figures["goodput"] = _goodput(log, limits)
    figures["peak memory"] = f"{_most(log.inference, 'peak_memory') / 1e9:.3f} GB"
    figures["preempted"] = str(log.preempted)
    figures["errors"] = str(len(log.errors))
    figures["closed"] = "yes" if log.end is not None else "no (killed, or still runs)"
    return RunSummary(
        _name(log),
        log,
        latencies["ttft"],
        itl,
        latencies["tpot"],
        latencies["queue_time"],
        figures,
        _stages(log),
    )


def print_report(
    console: Console, summaries: list[RunSummary], problems: list[Problem], most: int = 4
) -> None:
    """Tables on a terminal: the latest ``most`` runs side by side, their stages, the problems."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = summaries[-most:]
    table = Table(box=box.SIMPLE, title_justify="left")
    table.add_column("")
    for summary in shown:
        table.add_column(Text(summary.name), justify="right", overflow="fold")
    for label in _labels(shown):
        table.add_row(label, *(Text(s.figures.get(label, NONE)) for s in shown))
    if shown:
        console.print(table)
    if len(shown) < len(summaries):
        console.print(f"{len(summaries) - len(shown)} older runs are not shown; --out has them all")
    for summary in shown:
        if summary.stages:
            stages = Table(
                "stage",
                "items",
                "items/s",
                "errors",
                "seconds",
                box=box.SIMPLE,
                title=Text(f"stages of {summary.name}"),
                title_justify="left",
            )
            for row in summary.stages:
                stages.add_row(*(Text(cell) for cell in row))
            console.print(stages)
    for problem in problems:
        console.print(Text(f"left out: {problem}"), soft_wrap=True)


def check_extra() -> None:
    """Refuse early what needs the extra.

    Raises:
        MlxSpecError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MlxSpecError("[report] charts need matplotlib: pip install 'mlx-spec[report]'")


def write_report(folder: Path, summaries: list[RunSummary], problems: list[Problem]) -> Path:
    """Charts as PNG files and a page ``report.html`` that holds them all; returns the page.

    Raises:
        MlxSpecError: the extra is not installed, or the folder cannot be written.
    """
    check_extra()
    from mlx_spec.metrics.plots import DARK, draw

    charts = draw(summaries)
    page = _page(summaries, problems, charts, draw(summaries, DARK))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in charts.items():
            (folder / f"{name}.png").write_bytes(png)
        target = folder / "report.html"
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise MlxSpecError(f"[report] --out {folder}: {error.strerror}") from error
    return target


def _page(
    summaries: list[RunSummary],
    problems: list[Problem],
    light: dict[str, bytes],
    dark: dict[str, bytes],
) -> str:
    import jinja2

    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(source)
    return template.render(
        summaries=summaries,
        labels=_labels(summaries),
        none=NONE,
        problems=problems,
        charts={
            name: {"light": _inline(png), "dark": _inline(dark[name])}
            for name, png in light.items()
        },
    )


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _labels(summaries: list[RunSummary]) -> list[str]:
    """Every label that some run has, in order."""
    return list(dict.fromkeys(label for summary in summaries for label in summary.figures))


def _name(log: RunLog) -> str:
    """Short and telling: when it began, and the end of its name, which is random."""
    started = str(log.header.get("started", ""))[:19].replace("T", " ")
    return f"{started} {log.run.rpartition('-')[2]}".strip()


def _origin(log: RunLog) -> dict[str, str]:
    header = log.header
    machine = _mapping(header.get("machine"))
    models = {**_mapping(header.get("models"))}
    notes = _mapping(header.get("notes"))
    known = {role: str(_mapping(model).get("type", "?")) for role, model in models.items()}
    known.update({role: str(notes[role]) for role in ("target", "draft") if role in notes})
    return {
        "machine": f"{machine.get('device', '?')} ({machine.get('backend', '?')})",
        "models": " + ".join(known.values()) or NONE,
    }


def _throughput(log: RunLog) -> dict[str, str]:
    tokens = sum(line["tokens"] for line in log.inference)
    seconds = sum(line["seconds"] for line in log.inference)
    reasons = Counter(str(request.get("reason")) for request in log.requests)
    ends = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    rows = sum(line["row_steps"] for line in log.inference)
    places = sum(
        line["row_steps"] / line["rows"] * line["batch_size"]
        for line in log.inference
        if line["rows"]
    )
    return {
        "requests": f"{len(log.requests)} ({ends})" if ends else "0",
        "tokens": f"{tokens:,}",
        "busy": f"{seconds:.1f} s",
        "throughput": f"{tokens / seconds:.1f} tok/s" if seconds else NONE,
        "occupancy": f"{rows / places:.0%}" if places else NONE,
    }


def _drafting(log: RunLog) -> dict[str, str]:
    drafted = sum(line["drafted"] for line in log.inference)
    accepted = sum(line["accepted"] for line in log.inference)
    rows = sum(line["row_steps"] for line in log.inference)
    tokens = sum(line["tokens"] for line in log.inference)
    return {
        "acceptance": f"{accepted / drafted:.1%}" if drafted else NONE,
        "tokens a pass": f"{tokens / rows:.2f}" if rows else NONE,
    }


def _goodput(log: RunLog, limits: Limits) -> str:
    ended = [r for r in log.requests if r.get("reason") != "cancelled"]
    seconds = sum(line["seconds"] for line in log.inference)
    goodput = Goodput.of(
        [(r.get("ttft"), r.get("tpot")) for r in ended], seconds, limits.ttft, limits.tpot
    )
    return f"{goodput.per_second:.2f} requests/s ({goodput.share:.0%} within the limits)"


def _stages(log: RunLog) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for name in dict.fromkeys(str(line.get("stage")) for line in log.stages):
        lines = [line for line in log.stages if str(line.get("stage")) == name]
        items, errors = sum(line["items"] for line in lines), sum(line["errors"] for line in lines)
        seconds = sum(line["seconds"] for line in lines)
        speed = f"{items / seconds:.2f}" if seconds else NONE
        rows.append((name, f"{items:,}", speed, str(errors), f"{seconds:.1f}"))
    return rows


def _times(percentiles: Percentiles) -> str:
    if percentiles.p50 is None or percentiles.p90 is None or percentiles.p99 is None:
        return NONE
    values = (percentiles.p50, percentiles.p90, percentiles.p99)
    return " / ".join(_milliseconds(value) for value in values) + " ms"


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _most(lines: list[dict[str, Any]], name: str) -> float:
    return max((line[name] for line in lines), default=0)


def _mapping(value: Any) -> dict[str, Any]:
    """A header's field as a mapping, whatever stands there."""
    return value if isinstance(value, dict) else {}
