"""What a decoding step must read and compute, from the shapes of models; and what Apple says of its
chips. Pure arithmetic: no mlx, nothing measured."""

from __future__ import annotations

from dataclasses import dataclass

GROUP = 64  # weights, or keys, that share a scale and a bias of 16 bits each


def bytes_each(bits: int) -> float:
    """Of one number: plain at 16 and 32 bits, else quantized in groups.

    >>> bytes_each(4)
    0.5625
    """
    return bits / 8 if bits >= 16 else (bits + 32 / GROUP) / 8


def grouped_heads(layers: int, kv_heads: int, head_dim: int) -> int:
    """Numbers that a token leaves in caches of keys and values."""
    return 2 * layers * kv_heads * head_dim


def latent(layers: int, rank: int, rotated: int) -> int:
    """The same where keys and values are kept as one latent vector (MLA)."""
    return layers * (rank + rotated)


@dataclass(frozen=True)
class ScaledModel:
    """What of a model counts.

    Attributes:
        dense: parameters that every step reads (an input embedding of its own is not).
        kept: numbers that a token leaves in caches for good.
        q_width: of all query heads.
        layers: with full attention.
        experts: parameters of all experts.
        share: of them that one token reads.
        windowed, window: numbers a token leaves in caches of a window, and its tokens.
        state: bytes of a row whatever its length.
        total: all parameters.
    """

    name: str
    dense: float
    kept: int
    q_width: int
    layers: int
    total: float
    experts: float = 0.0
    share: float = 0.0
    windowed: int = 0
    window: int = 0
    state: int = 0

    def weights(self, bits: int, tokens: int = 1) -> float:
        """Bytes of weights that a pass of so many tokens reads: of experts those that some token
        chooses, if all choose alike and independently."""
        used = 1 - (1 - self.share) ** tokens if self.share else 0.0
        return (self.dense + used * self.experts) * bytes_each(bits)

    def memory(self, bits: int) -> float:
        """Bytes of all weights."""
        return self.total * bytes_each(bits)

    def row(self, context: float, bits: int = 16) -> float:
        """Bytes that a row of so many tokens keeps, and that a step reads of it."""
        held = self.kept * context + self.windowed * min(context, self.window)
        return held * bytes_each(bits) + self.state

    def operations(self, context: float) -> float:
        """Multiplications and additions for one token behind so many others."""
        return 2 * (self.dense + self.share * self.experts) + self.attention(context)

    def attention(self, context: float) -> float:
        """Those of them that attention takes."""
        return 4 * self.q_width * self.layers * context


@dataclass(frozen=True)
class Chip:
    """What is said of a chip by its maker, or of another machine by who measured it.

    Attributes:
        name: of the chip.
        bandwidth: bytes a second.
        memory: most bytes that it is sold with.
        flops: multiplications and additions a second in float32; None where Apple gives no figure.
    """

    name: str
    bandwidth: float
    memory: float
    flops: float | None = None


def chip(name: str, bandwidth: float, memory: float, teraflops: float | None = None) -> Chip:
    """In GB/s, GB and Tflop/s."""
    return Chip(name, bandwidth * 1e9, memory * 1e9, teraflops and teraflops * 1e12)


CHIPS = (
    chip("M1", 68, 16, 2.6),
    chip("M1 Pro", 200, 32, 5.2),
    chip("M1 Max", 400, 64, 10.4),
    chip("M1 Ultra", 800, 128, 21.0),
    chip("M2", 100, 24, 3.6),
    chip("M2 Pro", 200, 32),
    chip("M2 Max", 400, 96),
    chip("M2 Ultra", 800, 192),
    chip("M3", 100, 24),
    chip("M3 Pro", 150, 36),
    chip("M3 Max", 400, 128),  # 300 with fewer cores
    chip("M3 Ultra", 819, 512),
    chip("M4", 120, 32),
    chip("M4 Pro", 273, 64),
    chip("M4 Max", 546, 128),  # 410 with fewer cores
    chip("M5", 153, 32),
    chip("M5 Pro", 307, 64),
    chip("M5 Max", 614, 128),  # less with fewer cores
)

LLAMA_8B = ScaledModel(
    "Llama-3.1-8B", 7.505e9, grouped_heads(32, 8, 128), 32 * 128, 32, total=8.03e9
)
LLAMA_70B = ScaledModel(
    "Llama-3.1-70B", 69.5e9, grouped_heads(80, 8, 128), 64 * 128, 80, total=70.55e9
)
QWEN_30B = ScaledModel(
    "Qwen3-30B-A3B",
    1.23e9,
    grouped_heads(48, 4, 128),
    32 * 128,
    48,
    total=30.5e9,
    experts=28.99e9,
    share=8 / 128,
)
MODELS = (LLAMA_8B, LLAMA_70B, QWEN_30B)

# For their caches only.
CACHES = (
    ScaledModel("Llama-2-7B (a KV head a query head)", 0, grouped_heads(32, 32, 128), 0, 32, 0),
    LLAMA_8B,
    LLAMA_70B,
    QWEN_30B,
    ScaledModel(
        "Gemma-3-27B (5 of 6 layers see 1,024 tokens)",
        0,
        grouped_heads(10, 16, 128),
        0,
        10,
        0,
        windowed=grouped_heads(52, 16, 128),
        window=1024,
    ),
    ScaledModel("DeepSeek-V3 (one latent of 576)", 0, latent(61, 512, 64), 0, 61, 0),
    ScaledModel(
        "Qwen3-Next-80B-A3B (3 of 4 layers keep a state)",
        0,
        grouped_heads(12, 2, 256),
        0,
        12,
        0,
        state=36 * (32 * 128 * 128 * 4 + 3 * 8192 * 2),
    ),
)


def step_seconds(
    model: ScaledModel,
    machine: Chip,
    lengths: tuple[int, int],
    context: float,
    bits: tuple[int, int] = (4, 16),
) -> float:
    """A lower bound of what a step takes: weights and caches read once, nothing else moved.

    Where the chip's operations are known each part takes as long as the longer of its reads and its
    operations; else its reads.

    Args:
        model, machine: which.
        lengths: rows, and new tokens of each.
        context: tokens that each row looks back to.
        bits: of weights, and of keys and values.
    """
    rows, tokens = lengths
    reads = model.weights(bits[0], rows * tokens), rows * model.row(context, bits[1])
    attention = rows * tokens * model.attention(context)
    dense = rows * tokens * model.operations(context) - attention
    if machine.flops is None:
        return sum(reads) / machine.bandwidth
    return sum(
        max(read / machine.bandwidth, work / machine.flops)
        for read, work in zip(reads, (dense, attention), strict=True)
    )


def expected(acceptance: float, drafted: int) -> float:
    """Tokens of a step by one row, each guess right with the same chance.

    >>> expected(0.5, 1)
    1.5
    """
    return sum(acceptance**place for place in range(drafted + 1))
