"""``docs/scaling.md`` and its charts: what a token costs as batch, context and model grow.

Counted in bytes and operations, against bandwidths that Apple publishes; and, for the one machine
that was at hand, against what a real model takes there.

    python scripts/scaling.py                      # page and charts again, from what was measured
    python scripts/scaling.py --measure MODEL      # measure first (SmolLM2-135M-Instruct), a minute
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from bench_support.charts import Picture
from bench_support.scaling_bytes import (
    CACHES,
    CHIPS,
    LLAMA_8B,
    MODELS,
    Chip,
    ScaledModel,
    bytes_each,
    expected,
    step_seconds,
)

DOCS = Path(__file__).parent.parent / "docs"
FOLDER = DOCS / "scaling"
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (1024, 8192, 32_768, 131_072)
ACCEPTANCE, MOST_DRAFTED = 0.7, 8
REQUESTS, PROMPT, ANSWER = 1000, 1000, 300
_FITS = 0.75  # of a Mac's memory, about what Metal recommends to use
KNOWN = [machine for machine in CHIPS if machine.flops is not None]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def short(number: float) -> str:
    """To about three digits."""
    if number == 0:
        return "0"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def gb(size: float) -> str:
    return short(size / 1e9)


def weights_table() -> str:
    def rows() -> Iterable[Sequence[str]]:
        for model in MODELS:
            for bits in (16, 8, 4):
                reads = [gb(model.weights(bits, tokens)) for tokens in (1, 8, 32, 128)]
                yield [model.name, f"{bits}", gb(model.memory(bits)), *reads]

    tokens = [f"read by a pass of {n}" for n in (1, 8, 32, 128)]
    return table(["model", "bits", "weights, GB", *tokens], rows())


def caches_table() -> str:
    header = ["model", "bytes a token"]
    header += [f"a row of {context // 1024}k, MB" for context in CONTEXTS] + ["8 bits at 32k, MB"]
    rows = [
        [
            model.name,
            f"{2 * model.kept:,}",
            *(short(model.row(context) / 1e6) for context in CONTEXTS),
            short(model.row(32_768, 8) / 1e6),
        ]
        for model in CACHES
    ]
    return table(header, rows)


def crossing(model: ScaledModel, bits: int, context: int) -> int:
    """The fewest rows whose caches a step reads more of than of weights."""
    rows = 1
    while rows * model.row(context) <= model.weights(bits, rows):
        rows += 1
    return rows


def crossings_table() -> str:
    header = ["model", "bits", *(f"at {context // 1024}k" for context in CONTEXTS)]
    rows = [
        [model.name, f"{bits}", *(f"{crossing(model, bits, context)}" for context in CONTEXTS)]
        for model in MODELS
        for bits in (16, 4)
    ]
    return table(header, rows)


def by_reads(machine: Chip) -> Chip:
    """The same as if it computed in no time, as chips without a figure are taken."""
    return replace(machine, flops=None)


def speed(model: ScaledModel, machine: Chip, rows: int, context: int) -> float | None:
    """A bound of tokens a second, of all rows together, by reads; None where it does not fit."""
    if model.memory(4) + rows * model.row(context) > _FITS * machine.memory:
        return None
    return rows / step_seconds(model, by_reads(machine), (rows, 1), context)


def speeds_table(model: ScaledModel, context: int) -> str:
    some = (1, 8, 32, 128)
    header = ["chip", "GB/s", "GB", "1 row", *(f"{rows} rows" for rows in some[1:]), "each of 32"]

    def cells(machine: Chip) -> Iterable[str]:
        bounds = [speed(model, machine, rows, context) for rows in some]
        each = bounds[2] and bounds[2] / 32
        return ("-" if bound is None else short(bound) for bound in (*bounds, each))

    def size(number: float) -> str:
        return f"{number / 1e9:.0f}"

    return table(
        header,
        [[m.name, size(m.bandwidth), size(m.memory), *cells(m)] for m in CHIPS],
    )


def ridges_table(measured: dict[str, Any]) -> str:
    rows = []
    for machine in KNOWN:
        balance = (machine.flops or 0) / machine.bandwidth
        ridge = [f"{balance * bytes_each(bits) / 2:.1f}" for bits in (16, 8, 4)]
        rows.append([machine.name, f"{balance:.0f}", *ridge, f"{balance / 4:.1f}"])
    balance = measured["flops"] / measured["read"]
    rows.append(["2 cores here, measured", f"{balance:.0f}", f"{2 * balance:.0f} (32 bits)"])
    rows[-1] += ["", "", ""]
    header = ["", "operations a byte", "tokens, 16 bits", "8 bits", "4 bits"]
    return table([*header, "new tokens a row, attention (8B)"], rows)


def best_draft(machine: Chip, rows: int, context: int) -> tuple[int, float]:
    """The draft length with the highest bound of speculative over plain speed, drafts for free."""
    plain = step_seconds(LLAMA_8B, machine, (rows, 1), context)
    gains = [
        expected(ACCEPTANCE, drafted)
        * plain
        / step_seconds(LLAMA_8B, machine, (rows, drafted + 1), context)
        for drafted in range(MOST_DRAFTED + 1)
    ]
    best = max(range(len(gains)), key=lambda drafted: gains[drafted])
    return best, gains[best]


def drafts_table(machine: Chip) -> str:
    def cell(rows: int, context: int) -> str:
        drafted, gain = best_draft(machine, rows, context)
        return f"{gain:.2f} (K = {drafted})"

    header = ["rows", *(f"{context // 1024}k" for context in CONTEXTS)]
    return table(header, [[rows, *(cell(rows, c) for c in CONTEXTS)] for rows in ROWS[:8]])


def requests_table(model: ScaledModel) -> str:
    each = model.row(PROMPT + ANSWER)
    prompts = REQUESTS * PROMPT * model.operations(PROMPT / 2)
    answers = REQUESTS * ANSWER * model.operations(PROMPT + ANSWER / 2)
    rows = []
    for machine in CHIPS:
        room = _FITS * machine.memory - model.memory(4)
        fit = min(REQUESTS, int(room / each))
        step = step_seconds(model, by_reads(machine), (fit, 1), PROMPT + ANSWER / 2)
        work = ["?", "?"]
        if machine.flops is not None:
            work = [short(operations / machine.flops / 60) for operations in (prompts, answers)]
        reads = short(REQUESTS * ANSWER / fit * step / 60)
        rows.append([machine.name, f"{fit}", work[0], reads, work[1]])
    header = ["chip", "rows that fit", "prompts, by operations", "answers, by reads"]
    return table([*header, "answers, by operations"], rows)


def here(measured: dict[str, Any]) -> tuple[Chip, ScaledModel]:
    """The machine and the model that were measured."""
    machine = Chip("here", measured["read"], 0, measured["flops"])
    model = ScaledModel(
        measured["model"],
        measured["parameters"],
        measured["kv"] // 4,
        measured["q_width"],
        measured["layers"],
        measured["parameters"],
    )
    return machine, model


def parts(measured: dict[str, Any], rows: int, keys: int) -> tuple[float, float]:
    """Seconds of a pass: the bound, and reads and operations one after the other."""
    machine, model = here(measured)
    reads = model.weights(32, rows) + rows * model.row(keys, 32)
    work = rows * model.operations(keys)
    bound = step_seconds(model, machine, (rows, 1), keys, (32, 32))
    return bound, reads / machine.bandwidth + work / (machine.flops or 1)


def check_table(measured: dict[str, Any]) -> str:
    rows = []
    for count, keys, seconds in measured["passes"]:
        bound, both = parts(measured, count, keys)
        times = [f"{1e3 * each:.0f}" for each in (bound, both, seconds)]
        rows.append([count, f"{keys:,}", *times, f"{bound / seconds:.2f}", f"{both / seconds:.2f}"])
    header = ["rows", "keys of each", "bound, ms", "reads + operations, ms", "measured, ms"]
    return table([*header, "bound / measured", "reads + operations / measured"], rows)


def explained(measured: dict[str, Any]) -> dict[str, str]:
    """What of the measured time reads and operations explain: without context, and at worst."""
    shares = {
        (rows, keys): parts(measured, rows, keys)[1] / seconds
        for rows, keys, seconds in measured["passes"]
    }
    plain = [share for (_, keys), share in shares.items() if not keys]
    (rows, keys), least = min(shares.items(), key=lambda one: one[1])
    return {
        "explained": f"{min(plain):.0%} to {max(plain):.0%}",
        "least": f"{least:.0%} of it with {rows} rows of {keys:,} keys",
    }


def pictures(measured: dict[str, Any]) -> list[Picture]:
    """The charts of the page."""
    labels = [f"{rows}" for rows in ROWS]
    some = [machine for machine in CHIPS if machine.name in ("M1", "M4 Pro", "M5 Max", "M3 Ultra")]
    plain = [point for point in measured["passes"] if not point[1]]
    return [
        Picture(
            "bytes",
            "Llama-3.1-8B at 4 bits: GB read for a token, by rows",
            "GB a token",
            labels,
            {
                f"{context:,} tokens of context": [
                    (LLAMA_8B.weights(4) + rows * LLAMA_8B.row(context)) / rows / 1e9
                    for rows in ROWS
                ]
                for context in (0, 1024, 8192, 32_768)
            },
            lines=True,
        ),
        Picture(
            "bounds",
            "Llama-3.1-8B at 4 bits, 1,024 tokens of context: bounds by bandwidth alone",
            "tokens a second, of all rows",
            labels,
            {
                machine.name: [speed(LLAMA_8B, machine, rows, 1024) for rows in ROWS]
                for machine in some
            },
            lines=True,
        ),
        Picture(
            "measured",
            "SmolLM2-135M-Instruct in float32 on two cores: a pass, by tokens",
            "ms",
            [f"{rows}" for rows, _, _ in plain],
            {
                "measured": [1e3 * seconds for *_, seconds in plain],
                "reads + operations": [1e3 * parts(measured, n, 0)[1] for n, _, _ in plain],
                "bound": [1e3 * parts(measured, n, 0)[0] for n, _, _ in plain],
            },
            lines=True,
        ),
    ]


def document(measured: dict[str, Any]) -> str:
    """The page."""
    text = (FOLDER / "template.md").read_text(encoding="utf-8")
    m1_max = next(machine for machine in CHIPS if machine.name == "M1 Max")
    parts_of = {
        "weights": weights_table(),
        "caches": caches_table(),
        "crossings": crossings_table(),
        "speeds 8B": speeds_table(MODELS[0], 1024),
        "speeds 70B": speeds_table(MODELS[1], 1024),
        "ridges": ridges_table(measured),
        "drafts": drafts_table(m1_max),
        "requests": requests_table(LLAMA_8B),
        "check": check_table(measured),
        "machine": f"{measured['machine']}, {measured['date']}: {measured['read'] / 1e9:.1f} GB/s "
        f"read, {measured['flops'] / 1e9:.0f} Gflop/s",
        **explained(measured),
    }
    for name, value in parts_of.items():
        text = text.replace(f"<!-- {name} -->", value)
    return text


def main(arguments: list[str] | None = None) -> int:
    """Measure if asked, write page and charts; the exit code."""
    parser = argparse.ArgumentParser(description="docs/scaling.md and its charts.")
    parser.add_argument("--measure", metavar="MODEL", help="a folder, or what load() takes")
    options = parser.parse_args(arguments)
    file = FOLDER / "measured.json"
    if options.measure is not None:
        from bench_support.scaling_measure import measure

        from mlx_spec.platform import describe

        found = measure(options.measure)
        machine = describe()
        words = f"{machine.cpu_count} cores, {machine.machine}, mlx {machine.versions['mlx']}"
        record = {"machine": words, "date": f"{date.today()}", **found}
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    measured = json.loads(file.read_text(encoding="utf-8"))
    (DOCS / "scaling.md").write_text(document(measured), encoding="utf-8")
    for picture in pictures(measured):
        picture.write(FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
