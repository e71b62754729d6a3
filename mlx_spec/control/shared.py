"""What was measured of a pair of models, kept while both are alive.

A notebook or pipeline calls ``generate`` many times with the same models, and a server may run
several decoders of one pair. Costs and the usual acceptance are the pair's, so a later decoder
starts informed instead of trying draft lengths anew. Only measurements stand here: what a policy
chose, and when, is its own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.control.acceptance import AverageAcceptance
from mlx_spec.control.confidence import Confidence
from mlx_spec.control.joins import ReadingCost
from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.control.step_prices import StepPrices


@dataclass(frozen=True)
class PairMeasurements:
    """Measurements of one (target, draft) pair, each thread-safe.

    Attributes:
        acceptance: the average over all texts.
        confidence: what the drafter's own word for a guess is worth.
        reading: seconds that the drafter takes to read a newcomer's text.
    """

    acceptance: AverageAcceptance = field(default_factory=AverageAcceptance)
    confidence: Confidence = field(default_factory=Confidence)
    reading: ReadingCost = field(default_factory=ReadingCost)


@dataclass(frozen=True)
class _Shared:
    owners: tuple[weakref.ref[Any], ...]
    value: Any


# By identity, mlx modules being dictionaries without a hash; and by what it is of them.
_KNOWN: dict[tuple[int, int, str], _Shared] = {}
_LOCK = threading.RLock()


def measurements_of(model: Any, draft_model: Any = None, drafter: str = "") -> PairMeasurements:
    """Those of this pair; new ones if it was never seen or a model has been freed since.

    Args:
        model, draft_model: target and draft, which may be None.
        drafter: what drafts, by name: costs and acceptance are its.
    """
    found: PairMeasurements = _shared(model, draft_model, drafter, PairMeasurements)
    return found


def costs_of(model: Any, draft_model: Any = None, part: str = "") -> PassCosts:
    """What passes of a model cost, whoever runs it; ``part`` names what is less than the model."""
    found: PassCosts = _shared(model, draft_model, f"passes {part}", PassCosts)
    return found


def prices_of(
    model: Any, draft_model: Any, drafter: str, make: Callable[[], StepPrices]
) -> StepPrices:
    """What steps of a pair cost, made where nobody has asked before."""
    found: StepPrices = _shared(model, draft_model, f"steps {drafter}", make)
    return found


def _shared(model: Any, draft_model: Any, name: str, make: Callable[[], Any]) -> Any:
    key = (id(model), id(draft_model), name)
    with _LOCK:
        entry = _KNOWN.get(key)
        if entry is None or any(owner() is None for owner in entry.owners):
            owners = tuple(
                # Takes no lock: it may be called at any allocation, also by whoever holds it.
                weakref.ref(owner, lambda _, key=key: _KNOWN.pop(key, None))  # type: ignore[misc]
                for owner in (model, draft_model)
                if owner is not None
            )
            entry = _KNOWN[key] = _Shared(owners, make())
        return entry.value
