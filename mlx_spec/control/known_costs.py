"""What was measured of a pair of models, kept while both are alive.

A notebook or pipeline calls ``generate`` many times with the same models. Their costs and their
usual acceptance do not change between calls, so the second call starts where the first one ended
instead of trying draft lengths anew.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.control.costs import CostTable


@dataclass
class PairCosts:
    """Measured costs and average acceptance of one (target, draft) pair.

    Attributes:
        costs: seconds per step.
        accepted, tested: weights of the average acceptance; it starts as that of an average
            drafter and gives way to the first measurements.
        length: the draft length in use; None before the first choice.
        since: decisions since it changed or was last tried.
        join_seconds: what a draft step costs more for each row whose text the drafter must read
            first.
    """

    costs: CostTable = field(default_factory=CostTable)
    accepted: float = 2.0
    tested: float = 3.0
    length: int | None = None
    since: int = 0
    join_seconds: float = 0.0


@dataclass(frozen=True)
class _Entry:
    owners: tuple[weakref.ref[Any], ...]
    memory: PairCosts


# By identity: mlx modules are dictionaries and so have no hash.
_PAIRS: dict[tuple[int, int], _Entry] = {}


def recall(model: Any, draft_model: Any) -> PairCosts:
    """The memory of this pair; a new one if it was never seen or a model has been freed since."""
    key = (id(model), id(draft_model))
    entry = _PAIRS.get(key)
    if entry is None or any(owner() is None for owner in entry.owners):
        owners = tuple(
            weakref.ref(owner, lambda _, key=key: _PAIRS.pop(key, None))  # type: ignore[misc]
            for owner in (model, draft_model)
        )
        entry = _PAIRS[key] = _Entry(owners, PairCosts())
    return entry.memory
