"""What is tried: sites and points, as JSON can hold them. No mlx here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

# The likeliest to pay first: if time runs out, it runs out for those that save no bytes.
ORDER = ("attention", "sample", "norm_rope", "add_rms_norm", "rms_norm", "rope")
SHORT = 1024  # keys


@dataclass(frozen=True)
class KernelSite:
    """Where a model calls an operation.

    Attributes:
        operation: as in ``metal_kernels``.
        dtype: of the numbers, ``"bfloat16"``.
        width: of the last axis: head dim, hidden size or vocabulary.
        q_heads, kv_heads: heads that it handles; of a norm and a rotation vectors a token.
        weight: type of a norm's weights; empty without.
        dims: that rotate.
        traditional: pairs of neighbours rotate.
        custom: frequencies of the model's own.
        window: that attention is cut to; 0 for none.
        sinks: attention with sinks.
    """

    operation: str
    dtype: str
    width: int
    q_heads: int = 1
    kv_heads: int = 1
    weight: str = ""
    dims: int = 0
    traditional: bool = False
    custom: bool = False
    window: int = 0
    sinks: bool = False

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> KernelSite:
        """From what :meth:`record` gave.

        Raises:
            ValueError: fields of another name, type or operation.
        """
        known = {field.name: type(getattr(_LIKE, field.name)) for field in fields(cls)}
        if set(record) != set(known) or record.get("operation") not in ORDER:
            raise ValueError(f"a site {str(dict(record))[:80]}")
        if any(type(record[name]) is not kind for name, kind in known.items()):
            raise ValueError(f"a site with {str(dict(record))[:80]}")
        return cls(**record)

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        heads = f"{self.q_heads} x " if self.q_heads > 1 else ""
        if self.operation in _WITH_KV_HEADS:
            heads = f"{self.q_heads}/{self.kv_heads} x "
        more = [f"window {self.window}"] * bool(self.window) + ["sinks"] * self.sinks
        return ", ".join([f"{heads}{self.width}", *more])


_LIKE = KernelSite("attention", "", 0)
_WITH_KV_HEADS = ("attention", "norm_rope")


@dataclass(frozen=True, order=True)
class KernelPoint:
    """A pass that a site is tried at.

    Attributes:
        rows: of the batch, B.
        tokens: new ones of each row, N.
        keys: that attention reads of each row; other operations do not look at it.
    """

    rows: int
    tokens: int
    keys: int = SHORT

    def __str__(self) -> str:
        long = f", {self.keys:,} keys" if self.keys != SHORT else ""
        return f"{self.rows} x {self.tokens}{long}"


# Plain decoding and a verified draft, of one row, a few and many.
POINTS = tuple(KernelPoint(rows, tokens) for rows in (1, 8, 32) for tokens in (1, 5))
# Attention's too: MLX's own is cut otherwise from 1,024, 4,096 or 16,384 keys on, by the chip, and
# ours into more splits. More rows of so many keys would take gigabytes to try.
LONG_POINTS = tuple(
    KernelPoint(rows, tokens, keys)
    for rows, keys in ((1, 4096), (8, 4096), (1, 16_384))
    for tokens in (1, 5)
)
ALL_POINTS = POINTS + LONG_POINTS


def points_of(operation: str) -> tuple[KernelPoint, ...]:
    """Where an operation is tried, what decides most first."""
    return ALL_POINTS if operation == "attention" else POINTS


def importance(site: KernelSite) -> tuple[int, int, str]:
    """Sites in the order in which they are tried."""
    return ORDER.index(site.operation), -site.width, str(site)
