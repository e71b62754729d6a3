"""``Processors``: what rows' own options do to their logits, each row's to its own alone.

Rows that want none are not touched; for the others all processors run over the same few rows::

    logits [B, N, V] --- gather ---> [b, N, V] -- bias -- repetition -- .. --> put back

A processor has a neutral value for rows that do not want it (a bias of 0, a penalty of 1 or 0),
with which floats stay as they are, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import mlx.core as mx

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.config import SamplingParams
from mlx_spec.decoding.rules.base import LogitsRule, RuleContext
from mlx_spec.sequence import Sequence

P = TypeVar("P", bound="Processor")


class Processor(ABC):
    """One kind of option of some rows, on the device.

    A frozen dataclass, whose arrays have an entry for each of the rows.
    """

    @staticmethod
    @abstractmethod
    def wanted(sampling: SamplingParams) -> bool:
        """Whether a row with these options needs it."""

    @classmethod
    @abstractmethod
    def of(cls: type[P], sequences: Seq[Sequence]) -> P:
        """Collect the options of these rows, in their order."""

    def taken(self: P, rows: mx.array) -> P:
        """Of as many rows as ``rows`` has, number i with the options of row ``rows[i]``."""
        arrays = {n: value for n, value in vars(self).items() if isinstance(value, mx.array)}
        own: Any = self
        made: P = replace(own, **{name: array[rows] for name, array in arrays.items()})
        return made

    @abstractmethod
    def process(self, logits: mx.array, context: RuleContext) -> mx.array:
        """Logits [b, N, V] of those rows as they shall be, lazily.

        A draft's V may be less than the target's: a token past it is nobody's affair.
        """

    def concerns(self, sequences: Seq[Sequence]) -> bool:
        """Whether it still has something to do for those rows."""
        return True


@dataclass(frozen=True, eq=False)
class Processors(LogitsRule):
    """All processors of the present rows.

    Attributes:
        rows: numbers of the rows that want some, ascending.
        index: the same on the device.
        parts: what they want, in the order in which it is done.
    """

    rows: tuple[int, ...]
    index: mx.array
    parts: tuple[Processor, ...]

    @classmethod
    def of(cls, sequences: Seq[Sequence], kinds: Seq[type[Processor]]) -> Processors | None:
        """Those of these kinds that some row wants; None where none does."""
        wanted = [[kind.wanted(sequence.sampling) for kind in kinds] for sequence in sequences]
        rows = tuple(row for row, wants in enumerate(wanted) if any(wants))
        if not rows:
            return None
        own = [sequences[row] for row in rows]
        parts = [
            kind.of(own) for number, kind in enumerate(kinds) if any(w[number] for w in wanted)
        ]
        return cls(rows, mx.array(rows, mx.int32), tuple(parts))

    def concerns(self, sequences: Seq[Sequence]) -> bool:
        """Whether some part still has something to do."""
        own = [sequences[row] for row in self.rows]
        return any(part.concerns(own) for part in self.parts)

    def of_tokens(self, packing: TokenPacking) -> Processors:
        """Each token as a row that has the options of its own."""
        places = {row: place for place, row in enumerate(self.rows)}
        own = [(token, places[row]) for token, row in enumerate(packing.rows) if row in places]
        tokens = tuple(token for token, _ in own)
        index = mx.array([place for _, place in own], mx.int32)
        parts = tuple(part.taken(index) for part in self.parts)
        return Processors(tokens, mx.array(tokens, mx.int32), parts)

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        """Gather, change, put back."""
        whole = len(self.rows) == len(context.sequences)
        own = logits if whole else logits[self.index]
        of_rows = context if whole else context.of(self.rows, self.index)
        for part in self.parts:
            own = part.process(own, of_rows)
        if whole:
            return own
        changed = logits[...]  # another array object: the caller's stays what it is
        changed[self.index] = own
        return changed
