"""Drafter and draft-length policy, as the options ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDraftLength
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.control.shared import PairMeasurements
from mlx_spec.decoding.acceptance import AcceptanceRule, SharedNoise
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.decoding.drafters.none import NoDraft
from mlx_spec.decoding.drafters.registry import DraftParts, kind_of, make
from mlx_spec.decoding.rejection import RejectionSampling
from mlx_spec.errors import InvalidRequest

_ACCEPTANCE: dict[str, Callable[[], AcceptanceRule]] = {
    "shared_noise": SharedNoise,
    "rejection": RejectionSampling,
}


def make_acceptance(speculation: SpeculationConfig) -> AcceptanceRule:
    """What says which draft tokens stand."""
    return _ACCEPTANCE[speculation.acceptance]()


def used_model(draft_model: Any, speculation: SpeculationConfig) -> Any:
    """The draft model where anything is drafted with it, else None; what is not is not kept."""
    return draft_model if speculation.takes_model else None


def make_drafter(parts: DraftParts) -> Drafter:
    """What drafts, or the null object where nothing is to be drafted.

    Raises:
        InvalidRequest: a drafter that is asked for lacks a part.
        UnsupportedModel: a model that it would run cannot.
    """
    kinds = parts.speculation.kinds(kind_of(parts.draft_model))
    if not kinds:
        return NoDraft()
    if len(kinds) > 1:
        raise InvalidRequest(f"[SpeculationConfig] draft={'+'.join(kinds)!r} is not there yet")
    return make(kinds[0], parts)


def most_draft_tokens(drafter: Drafter, speculation: SpeculationConfig) -> int:
    """The longest draft: what is asked for, as far as the drafter can."""
    most = speculation.num_draft_tokens
    return most if drafter.max_draft_tokens is None else min(most, drafter.max_draft_tokens)


def make_policy(
    drafter: Drafter, speculation: SpeculationConfig, pair: PairMeasurements
) -> DraftLengthPolicy:
    """What chooses the draft length: fixed, or adaptive within what the drafter can do."""
    most = most_draft_tokens(drafter, speculation)
    if most == 0 or not speculation.adaptive:
        return FixedDraftLength(most)
    return AdaptiveDraftLength(replace(speculation, num_draft_tokens=most), pair)
