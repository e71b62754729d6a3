"""A run on a terminal: a table of all cells, one of the kinds of prompts, and what to use."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlx_spec.bench.arms import AGAIN, PLAIN, short
from mlx_spec.bench.findings import Recommendation
from mlx_spec.bench.results import SPEED, ArmResult, BenchResult, CellResult

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("rows", "prompt", "arm", "tok/s", "over plain", "a pass", "text")
_LEFT = ("arm", "text")
_ABOVE = (
    "; above 100% they come from the processor's cache, or the memory was busy while it was timed"
)
_LOUD = 0.05  # of noise: more than a machine at rest has
_TOO_LOUD = 0.25  # of noise: gains of drafts are seldom larger


def print_result(console: Console, result: BenchResult) -> None:
    """All of it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for weights, size in result.model_bytes.items():
        cells = [cell for cell in result.cells if cell.key.weights == weights]
        if not cells:
            continue
        form = "" if weights is None else f", quantized: {weights}"
        title = Text(f"{short(result.model)}{form}, {size / 1e6:,.0f} MB of weights", "bold")
        table = Table(box=box.SIMPLE, title=title, title_justify="left", pad_edge=False)
        for column in COLUMNS:
            table.add_column(
                column, justify="left" if column in _LEFT else "right", no_wrap=column != "arm"
            )
        for cell in cells:
            for row in rows_of(cell, result.noise):
                table.add_row(*map(Text, row))
            table.add_section()
        console.print(table)
        _print_kinds(console, cells)
    for line in notes(result):
        console.print(Text(line, "dim"), soft_wrap=True)
    console.print()
    for line in recommendation_lines(result):
        console.print(Text(line), soft_wrap=True)


def rows_of(cell: CellResult, noise: float) -> Iterator[tuple[str, ...]]:
    """A row of ``COLUMNS`` for each arm; of mlx-lm's draft lengths the best one."""
    place = (f"{cell.key.batch}", f"{cell.prompt_tokens:.0f}")
    for arm in shown_arms(cell):
        drafts = arm.series.rounds[0].get("acceptance")
        yield (
            *place,
            arm.name,
            f"{arm.series.median(SPEED):,.1f}",
            _over(arm, noise),
            f"{arm.series.median('tokens a pass'):.2f}" if drafts else "",
            "" if arm.name == PLAIN else said(arm),
        )
        place = ("", "")


def shown_arms(cell: CellResult) -> list[ArmResult]:
    """Its arms, but of mlx-lm's speculation only the fastest draft length for each draft."""
    best: dict[str, ArmResult] = {}
    for arm in cell.arms:
        name = arm.name if arm.exact else arm.name.partition(" K=")[0]
        if name not in best or arm.ratio > best[name].ratio:
            best[name] = arm
    return list(best.values())


def _over(arm: ArmResult, noise: float) -> str:
    """Whether it is faster or slower than plain decoding, the median, and all rounds."""
    if arm.name == PLAIN:
        return ""
    mark = "=" if abs(arm.ratio - 1) <= noise else "+" if arm.ratio > 1 else "-"
    return f"{mark} {arm.ratio:.2f} ({min(arm.ratios):.2f}-{max(arm.ratios):.2f})"


def said(arm: ArmResult) -> str:
    """What became of its texts."""
    if not arm.compared:
        return "samples"
    if not arm.differences:
        return "same"
    count = len(arm.differences)
    if arm.same:
        return f"{count} tie{'s' if count > 1 else ''}"
    return f"{count} differ{'s' if count == 1 else ''}"


def _differences(result: BenchResult) -> Iterator[str]:
    """Where texts differ, and not by near ties: the first of each arm in each cell."""
    for cell in result.cells:
        for arm in cell.arms:
            for one in [one for one in arm.differences if not one.near_tie][:1]:
                yield (
                    f"{arm.name}, {cell.key.batch} at a time: prompt {one.prompt + 1} differs from "
                    f"plain decoding from token {one.place + 1} on"
                )


def _print_kinds(console: Console, cells: list[CellResult]) -> None:
    """Gains by kind of prompt, where prompts run one at a time."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    alone = [cell for cell in cells if cell.key.batch == 1 and len(cell.arms[0].by_kind) > 1]
    if not alone:
        return
    kinds = list(alone[0].arms[0].by_kind)
    console.print(Text("over plain by kind of prompt, one at a time", "bold"))
    table = Table("prompt", "arm", box=box.SIMPLE, pad_edge=False)
    for kind in kinds:
        table.add_column(kind, justify="right")
    for cell in alone:
        for arm in shown_arms(cell):
            if arm.name not in (PLAIN, AGAIN) and arm.by_kind:
                gains = [f"{arm.by_kind[k]:.2f}" if k in arm.by_kind else "" for k in kinds]
                table.add_row(f"{cell.prompt_tokens:.0f}", Text(arm.name), *gains)
    console.print(table)


def notes(result: BenchResult) -> list[str]:
    """What the columns mean, and what was left out."""
    rounds = max((len(arm.ratios) for cell in result.cells for arm in cell.arms), default=0)
    found = [
        f"over plain: medians of {rounds} round{'s' if rounds != 1 else ''} (lowest-highest). "
        f"{AGAIN} is the noise, {result.noise:.1%} here: "
        "+ is faster, - slower, = neither beyond it",
        "a pass: tokens that a row gains by a pass of the model; text: whether it is plain "
        "decoding's, byte for byte, or but for near ties that rounding may flip",
        _memory(result),
        _reading(result),
    ]
    if result.noise > _LOUD:
        found.append("the machine was busy with other things: end them, or give --rounds more")
    found += _differences(result)
    found += [f"{name} is left out: {why}" for name, why in result.left_out.items()]
    return found + (["interrupted: of whole rounds only"] if result.interrupted else [])


def _memory(result: BenchResult) -> str:
    """How near plain decoding comes to reading as fast as memory gives."""
    shares: dict[int, list[float]] = {}
    for cell in result.cells:
        shares.setdefault(cell.key.batch, []).append(cell.share)
    each = ", ".join(
        f"{statistics.mean(found):.0%} ({rows} at a time)" for rows, found in shares.items()
    )
    most = max((one for found in shares.values() for one in found), default=0.0)
    cached = _ABOVE if most > 1 else ""
    copied, read = result.bandwidth.copy / 1e9, result.bandwidth.read / 1e9
    return (
        f"memory: MLX reads {read:,.1f} GB/s here (matrix times vector; copying {copied:,.1f}); "
        f"plain decoding reads weights, keys and values at {each} of the better of these{cached}"
    )


def _reading(result: BenchResult) -> str:
    """How fast prompts are read, and what all of it took of memory."""
    most = max(
        (peak for cell in result.cells for arm in cell.arms for peak in arm.series.each("peak")),
        default=0.0,
    )
    speeds = [
        f"{cell.arms[0].series.median('prompt tok/s'):,.0f} "
        f"({cell.key.batch} of {cell.prompt_tokens:,.0f} tokens)"
        for cell in result.cells
    ]
    return f"prompts are read at {', '.join(speeds)} tok/s; most memory {most / 1e9:.2f} GB"


def recommendation_lines(result: BenchResult) -> list[str]:
    """What to use on this machine."""
    found = ["What to use on this machine"]
    if result.noise > _TOO_LOUD:
        found[0] += " (a guess: it was too busy with other things to tell)"
    for one, command in result.recommended:
        form = "" if one.weights is None else f", quantized: {one.weights} (another text)"
        found += ["", f"  {_words(one)}{form}", f"    {command}"]
    if any(one.rising for one, _ in result.recommended):
        found += ["", "  The largest batch was the fastest: try still larger ones (--batch-sizes)."]
    return found


def _words(one: Recommendation) -> str:
    gain = f"{one.ratio:.2f} times plain decoding" if one.choice.drafts else "drafts gain nothing"
    if one.purpose == "one":
        return f"one prompt at a time: {one.speed:,.1f} tok/s, {gain}"
    over = f", {one.over_one:.1f} times one at a time" if one.over_one != 1 else ""
    return f"many prompts: {one.batch} at a time, {one.speed:,.1f} tok/s{over}, {gain}"
