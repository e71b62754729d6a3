"""The charts of ``docs/simulation.md``, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
INK = "#1f2430"


def _begin(across: str, up: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, 4.0), layout="constrained", facecolor="#ffffff")
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    """The same bytes for the same figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "mlx-spec", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_rows(rows: Seq[int], ratios: Mapping[str, Seq[float]], path: Path) -> None:
    """Over plain decoding, by rows."""
    figure, axes = _begin("rows", "tokens per second over plain decoding")
    axes.axhline(1.0, color=INK, linewidth=0.8, label="plain decoding")
    colours, forms = ("#CC79A7", "#D55E00", "#0072B2"), ("o:", "s--", "D-")
    for (name, values), colour, form in zip(ratios.items(), colours, forms, strict=True):
        axes.plot(range(len(rows)), values, form, color=colour, label=name)
    axes.set_xticks(range(len(rows)), [str(count) for count in rows])
    axes.set_title("M3 Ultra, from published cycle times")
    axes.legend(frameon=False)
    _save(figure, path)


def draw_starts(speeds: Mapping[str, Seq[float]], path: Path) -> None:
    """How soon the best is found, and again after a shift, by five steps."""
    figure, axes = _begin(
        "steps; texts turn hard at 100 (0.8 to 0.2) and easy again at 200",
        "speed over that of one who knows",
    )
    for (name, values), colour in zip(speeds.items(), COLOURS, strict=True):
        axes.plot(range(0, 5 * len(values), 5), values, color=colour, label=name)
    for at in (100, 200):
        axes.axvline(at, color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylim(0.4, 1.05)
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)
