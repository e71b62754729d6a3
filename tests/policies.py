"""Policies for tests, on machines whose prices they know."""

from __future__ import annotations

from typing import Any

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.drafting import CostlyDraft
from mlx_spec.control.shared import PairMeasurements
from scripts.simulated.machines import DRAFTER, Machine
from scripts.simulated.play import SimulatedRow
from scripts.simulated.regret import MOST


def make_rows(*remaining: int) -> list[SimulatedRow]:
    """Rows with so many tokens left each."""
    return [SimulatedRow(count) for count in remaining]


def long_rows(count: int) -> list[SimulatedRow]:
    """So many rows, none of which ends soon."""
    return make_rows(*[99] * count)


def adaptive(
    machine: Machine,
    most: int = MOST,
    *,
    pair: PairMeasurements | None = None,
    name: str = DRAFTER,
    reads: bool = False,
    **options: Any,
) -> AdaptiveDrafts:
    """One that knows what steps cost, and nothing of its drafter yet; ``reads``: it may ask how
    sure the drafter is."""
    prices, pair = machine.prices(), pair or PairMeasurements()
    config = SpeculationConfig(num_draft_tokens=most, **options)
    return AdaptiveDrafts(config, prices, [CostlyDraft(name, most, prices, pair)], reads=reads)
