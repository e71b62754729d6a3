"""Makes docs/scaling.md: what a token costs in bytes as batch, context and model grow.

    python scripts/make_scaling.py

Arithmetic from the shapes of models and the memory bandwidths that Apple publishes: bounds, no
measurements. What can be checked here is: bytes of K/V against the engine's own count on the
embedded model, and steps by rows against the record ``docs/results/steps.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_support.charts import Picture, number
from bench_support.results import RESULTS, ROOT, Record, Table  # loads the fast BLAS, before mlx

import mlx_spec
from mlx_spec.config import SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder

PAGE, CHARTS = ROOT / "docs" / "scaling.md", ROOT / "docs" / "charts"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1000)
CONTEXTS = (512, 4096, 32768)
# GB a second, as published for the chips.
BANDWIDTHS = {
    "M1": 68,
    "M1 Max": 400,
    "M1 Ultra": 800,
    "M2": 100,
    "M2 Max": 400,
    "M2 Ultra": 800,
    "M3": 100,
    "M3 Max": 400,
    "M3 Ultra": 819,
    "M4": 120,
    "M4 Pro": 273,
    "M4 Max": 546,
    "M5": 153,
}
MEMORIES = (16, 64, 128, 512)  # GB
USABLE = 0.75 * 0.9  # of memory: what a Mac recommends for the GPU, and the share that we take
QUANTIZED = 4.5  # bits a weight: four, and a scale and a bias of 16 bits for each 64


@dataclass(frozen=True)
class Shape:
    """What of a model counts here; parameters without the embedding, which is looked up."""

    name: str
    parameters: float
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def weights(self) -> float:
        """Bytes that a step reads of a model quantized to four bits."""
        return self.parameters * QUANTIZED / 8

    def kv(self, bits: float = 16) -> float:
        """Bytes of keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bits / 8

    def step(self, rows: int, context: int) -> float:
        """Bytes that a step of so many rows reads."""
        return self.weights + rows * context * self.kv()


MODELS = (
    Shape("1B (Llama 3.2)", 1.24e9, 16, 8, 64),
    Shape("8B (Llama 3.1)", 7.5e9, 32, 8, 128),
    Shape("70B (Llama 3.1)", 69.5e9, 80, 8, 128),
)
MAIN = MODELS[1]


def models() -> Table:
    """Bytes of each."""
    rows = [
        [
            one.name,
            f"{one.weights / 1e9:.1f}",
            f"{one.kv() / 1024:.0f}",
            f"{one.kv(8.5) / 1024:.0f}",
            *(f"{one.weights / (context * one.kv()):,.0f}" for context in CONTEXTS),
        ]
        for one in MODELS
    ]
    header = ["model", "weights GB at 4 bits", "K/V KiB a token at 16 bits", "at 8 bits"]
    return Table("", [*header, *(f"rows that weigh as much, {c:,} tokens" for c in CONTEXTS)], rows)


def bytes_a_token(model: Shape = MAIN) -> Table:
    """By batch and context."""
    rows = [
        [f"{batch:,}", *(f"{model.step(batch, c) / batch / 1e6:,.0f}" for c in CONTEXTS)]
        for batch in BATCHES
    ]
    return Table("", ["rows", *(f"MB a token, {c:,} tokens of context" for c in CONTEXTS)], rows)


def steps(rows: int, context: int = 4096) -> Table:
    """By chip and model, at least."""
    lines = [
        [chip, str(speed), *(f"{one.step(rows, context) / speed / 1e6:,.0f}" for one in MODELS)]
        for chip, speed in BANDWIDTHS.items()
    ]
    return Table("", ["chip", "GB/s", *(f"{one.name}: ms" for one in MODELS)], lines)


def fitting(context: int = 4096) -> Table:
    """Requests whose K/V fit beside the weights."""
    lines = []
    for memory in MEMORIES:
        cells = []
        for one in MODELS:
            left = USABLE * memory * 1e9 - one.weights
            cells.append(f"{left / (context * one.kv()):,.0f}" if left > 0 else "does not fit")
        lines.append([f"{memory} GB", *cells])
    return Table("", ["memory", *(one.name for one in MODELS)], lines)


def checked_bytes() -> Table:
    """The engine's own count of K/V bytes on the embedded model, against the formula."""
    model, _ = mlx_spec.load("demo")
    decoder = SpeculativeDecoder(model, speculation=SpeculationConfig(enabled=False))
    args: Any = model.args
    bits = 8 * model.layers[0].self_attn.k_proj.weight.dtype.size
    dim = args.head_dim or args.hidden_size // args.num_attention_heads
    one = Shape("demo", 0, args.num_hidden_layers, args.num_key_value_heads, dim)
    rows = [
        [f"{tokens:,}", f"{tokens * one.kv(bits):,.0f}", f"{decoder.cost.nbytes(tokens):,}"]
        for tokens in (1, 512, 2048)
    ]
    return Table("", ["tokens of a row", "bytes by the formula", "by the engine"], rows)


def checked_steps(folder: Path) -> Table | None:
    """What steps of more rows cost here, against what the bytes alone say."""
    path = folder / "steps.json"
    if not path.exists():
        return None
    table = Record.read(path).tables[0]
    plain = table.rows[0]
    batches = [int(number(name) or 0) for name in table.header[1:]]
    measured = [number(cell) or 0.0 for cell in plain[1:]]
    small = Shape("SmolLM2-135M", 134.5e6 * 32 / QUANTIZED, 30, 3, 64)
    base = small.step(batches[0], 64)
    rows = [
        [
            str(batch),
            f"{ms:.0f}",
            f"{ms / measured[0]:.2f}",
            f"{small.step(batch, 64) / base:.2f}",
            f"{ms / batch:.1f}",
        ]
        for batch, ms in zip(batches, measured, strict=True)
    ]
    header = ["rows", "ms a step", "/ one row", "bytes / one row", "ms a token"]
    return Table("", header, rows)


def pictures() -> list[Picture]:
    """Bytes a token by rows."""
    found = []
    for model in MODELS[1:]:
        table = bytes_a_token(model)
        series = {
            f"{context:,} tokens": [number(row[1 + place]) for row in table.rows]
            for place, context in enumerate(CONTEXTS)
        }
        name = f"scaling-{model.name.split()[0].lower()}"
        title = f"{model.name}: bytes read for a token, by rows"
        labels = [row[0] for row in table.rows]
        found.append(Picture(name, title, "MB a token", labels, series, lines=True, log=True))
    return found


def render(charts: Sequence[Picture], folder: Path = RESULTS) -> str:
    """The page."""
    shown = "\n\n".join(f"![{one.title}](charts/{one.name}.svg)" for one in charts)
    measured = checked_steps(folder)
    return f"""# How cost scales

Made by `python scripts/make_scaling.py`; do not edit this page. A decoding step reads all weights
once, whatever the number of rows, and of each row its keys and values. From these bytes follows the
least time that a step can take on a machine of some memory bandwidth, and how the cost of a token
falls as rows join. It is arithmetic, not measured on any Mac: computing, launching and everything
else come on top.

    bytes of a step = weights + rows x context x bytes of K/V a token

## Models

Weights at four bits in groups of 64, without the embedding, of which a step reads a row. *Rows that
weigh as much*: so many rows of that context have as many bytes of K/V as the model has of weights.
Up to there a row more costs less than the one before did; far beyond, a token costs its own K/V
whatever the batch is, and quantized K/V (`kv_bits=8`) nearly halve that.

{models()}

## A token, as the batch grows

{MAIN.name}, bytes read for each token. Verifying M tokens of a row reads no more than decoding one
of it does, so what speculation accepts divides these figures too, as long as computing keeps up.

{bytes_a_token()}

{shown}

## A step, at least

Milliseconds at the published bandwidth, one row of 4,096 tokens:

{steps(1)}

And 32 rows of 4,096 tokens each:

{steps(32)}

## Requests that fit

Rows of 4,096 tokens whose K/V fit beside the weights in 0.9 of what a Mac recommends for its GPU
(taken as three quarters of its memory). More requests wait, or take turns by preemption; a batch of
1,000 is one of short contexts or of large machines.

{fitting()}

## Checked here

The bytes of K/V by the formula, and by the engine's own account of a row, on the embedded model:

{checked_bytes()}

{_of_steps(measured)}
"""


def _of_steps(measured: Table | None) -> str:
    if measured is None:
        return "Steps by rows were not measured yet."
    return f"""Steps of SmolLM2-135M-Instruct in float32 by rows, on the CPU of `benchmarks.md`
("a plain step" there). By bytes alone a step of 16 rows would cost what one of a single row does;
what it costs more is computing, of which this machine has little.

{measured}"""


def make(page: Path = PAGE, folder: Path = CHARTS) -> None:
    """The page and its charts."""
    charts = pictures()
    for one in charts:
        one.write(folder)
    page.write_text(render(charts), encoding="utf-8")


if __name__ == "__main__":
    make()
