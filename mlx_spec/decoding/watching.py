"""What else is read of a step than its tokens, and by whom.

A watcher describes arrays of a step as it is chosen (``watch``). They travel with it, are waited
for together with its tokens, in the one wait that a step has, and are handed back as it is emitted
(``take``)::

    host     build n: watch(n)  | build n+1 | read n | emit n: take(n) |
    device   ========= step n: tokens, arrays =======|

A watcher that no present row asks for (``concerns``) adds nothing: no node, no byte.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.decoding.outputs import StepGains
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class Chosen:
    """A step whose tokens are chosen, and may still be computing.

    Attributes:
        sequences: the rows.
        logits: [B, K + 1, V] of the target, after all rules, before temperature and filters.
        positions: [B, K + 1] int32, of the tokens that they are for.
        draft: [B, K] int32.
        samples: [B, K + 1] int32, the tokens chosen.
        accepted: [B] int32, leading draft tokens that stand: ``samples[:, : accepted + 1]`` is
            what each row gains at most.
        packing: of a packed pass; else None.
        packed: [M, V], the same logits of its tokens; None where there are none.
    """

    sequences: Seq[Sequence]
    logits: mx.array
    positions: mx.array
    draft: mx.array
    samples: mx.array
    accepted: mx.array
    packing: TokenPacking | None = None
    packed: mx.array | None = None


class Watcher:
    """Reads something of steps; the base of all, which reads nothing."""

    def concerns(self, sequences: Seq[Sequence]) -> bool:
        """Whether any of these rows asks for it."""
        return True

    def watch(self, chosen: Chosen) -> list[mx.array]:
        """The arrays to be read, lazily: of any shape, and of a type that numpy has."""
        return []

    def take(self, gains: StepGains, values: list[Any]) -> None:
        """The same as numpy arrays, once the step's rows have their tokens."""


@dataclass(frozen=True)
class Extra:
    """What one watcher reads of a step."""

    watcher: Watcher
    arrays: list[mx.array]


def watch_all(watchers: Seq[Watcher], chosen: Chosen) -> list[Extra]:
    """What those of them read that some row asks."""
    asked = [watcher for watcher in watchers if watcher.concerns(chosen.sequences)]
    return [Extra(watcher, watcher.watch(chosen)) for watcher in asked]
