"""A run as a picture: speed by rows, and what each draft makes of it. Needs matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure

from mlx_spec.bench.arms import AGAIN, PLAIN, short
from mlx_spec.bench.results import SPEED, ArmResult, BenchResult, CellResult
from mlx_spec.bench.table import shown_arms
from mlx_spec.metrics.plots import LIGHT, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_result(result: BenchResult) -> bytes:
    """An SVG: a row of two charts for each form of the weights and length of prompts."""
    groups: dict[tuple[str | None, int | None], list[CellResult]] = {}
    for cell in result.cells:
        groups.setdefault((cell.key.weights, cell.key.length), []).append(cell)
    figure = Figure(figsize=(9.6, 3.4 * len(groups)), layout="constrained", facecolor=LIGHT.paper)
    grid = figure.subplots(len(groups), 2, squeeze=False)
    names = list(dict.fromkeys(a.name for c in result.cells for a in shown_arms(c)))
    for axes, ((weights, _), cells) in zip(grid, groups.items(), strict=True):
        form = "" if weights is None else f", quantized: {weights}"
        words = f"{short(result.model)}{form}, prompts of {cells[0].prompt_tokens:.0f} tokens"
        _speeds(axes[0], cells, names, words)
        _gains(axes[1], cells, names, result.noise)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=LIGHT.ink
    )
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "mlx-spec"}):  # the same figures, the same bytes
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _points(cells: list[CellResult], name: str) -> list[tuple[int, ArmResult]]:
    """(rows, the arm) wherever it ran; of mlx-lm's draft lengths whichever is shown."""
    return [(c.key.batch, arm) for c in cells for arm in shown_arms(c) if arm.name == name]


def _colour(names: list[str], name: str) -> str:
    return LIGHT.runs[names.index(name) % len(LIGHT.runs)]


def _frame(axes: Axes, cells: list[CellResult], title: str, y: str) -> None:
    dress(axes, LIGHT)
    axes.set_title(title, loc="left", color=LIGHT.ink, fontsize=9)
    axes.set_xlabel("prompts decoded together", color=LIGHT.ink)
    axes.set_ylabel(y, color=LIGHT.ink)
    axes.set_xscale("log", base=2)
    rows = sorted({cell.key.batch for cell in cells})
    axes.set_xticks(rows, [str(one) for one in rows])
    axes.minorticks_off()


def _speeds(axes: Axes, cells: list[CellResult], names: list[str], title: str) -> None:
    _frame(axes, cells, title, "tokens per second")
    for name in names:
        if name != AGAIN and (points := _points(cells, name)):
            rows = [batch for batch, _ in points]
            speeds = [arm.series.median(SPEED) for _, arm in points]
            colour = _colour(names, name)
            axes.plot(rows, speeds, color=colour, marker="o", linewidth=1.8, label=name)
    axes.set_ylim(bottom=0)


def _gains(axes: Axes, cells: list[CellResult], names: list[str], noise: float) -> None:
    """Ratios with all their rounds; what lies in the grey band is noise."""
    _frame(axes, cells, "over plain decoding (grey: noise)", "times plain")
    axes.axhspan(1 - noise, 1 + noise, color=LIGHT.faint)
    for name in names:
        if name not in (PLAIN, AGAIN) and (points := _points(cells, name)):
            rows = [batch for batch, _ in points]
            middle = [arm.ratio for _, arm in points]
            below = [arm.ratio - min(arm.ratios) for _, arm in points]
            above = [max(arm.ratios) - arm.ratio for _, arm in points]
            colour = _colour(names, name)
            axes.errorbar(
                rows,
                middle,
                yerr=[below, above],
                color=colour,
                marker="o",
                capsize=3,
                linewidth=1.8,
            )
