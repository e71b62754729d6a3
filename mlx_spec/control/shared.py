"""What was measured of a pair of models, kept while both are alive.

A notebook or pipeline calls ``generate`` many times with the same models, and a server may run
several decoders of one pair. Costs and the usual acceptance are the pair's, so a later decoder
starts informed instead of trying draft lengths anew. Only measurements stand here: what a policy
chose, and when, is its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.control.acceptance import AverageAcceptance
from mlx_spec.control.allowance import Allowance
from mlx_spec.control.confidence import Confidence
from mlx_spec.control.joins import ReadingCost
from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.control.step_prices import StepPrices
from mlx_spec.weak_memo import WeakMemo


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


_KNOWN = WeakMemo[Any]()
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


def allowance_of(model: Any) -> Allowance:
    """Seconds in which more may be found out of a model, whoever runs it."""
    found: Allowance = _shared(model, None, "allowance", Allowance)
    return found


def prices_of(
    model: Any, draft_model: Any, drafter: str, make: Callable[[], StepPrices]
) -> StepPrices:
    """What steps of a pair cost, made where nobody has asked before."""
    found: StepPrices = _shared(model, draft_model, f"steps {drafter}", make)
    return found


def _shared(model: Any, draft_model: Any, name: str, make: Callable[[], Any]) -> Any:
    with _LOCK:
        found = _KNOWN.get(model, draft_model, key=name)
        return _KNOWN.keep(make(), model, draft_model, key=name) if found is None else found
