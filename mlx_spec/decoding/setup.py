"""Drafter and draft-length policy, as the options ask for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDraftLength
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.control.shared import PairMeasurements
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.drafters.none import NoDraft
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.replay import Replay, replay_pays
from mlx_spec.model.runner import ModelRunner


def make_drafter(
    draft_model: Any, speculation: SpeculationConfig, batching: BatchingConfig
) -> Drafter:
    """A drafter that runs ``draft_model``, or the null object where nothing is to be drafted.

    Raises:
        UnsupportedModel: it cannot run here, or not over such caches; it is named as the draft.
    """
    if draft_model is None or not speculation.enabled or speculation.num_draft_tokens == 0:
        return NoDraft()
    try:
        runner = ModelRunner(draft_model, batching.batch_size, batching.cache)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"draft model: {error}") from error
    return ModelDrafter(runner, batching, Replay(runner) if replay_pays() else None)


def make_policy(
    drafter: Drafter, speculation: SpeculationConfig, pair: PairMeasurements
) -> DraftLengthPolicy:
    """What chooses the draft length: fixed, or adaptive within what the drafter can do."""
    most = speculation.num_draft_tokens
    if drafter.max_draft_tokens is not None:
        most = min(most, drafter.max_draft_tokens)
    if most == 0 or not speculation.adaptive:
        return FixedDraftLength(most)
    return AdaptiveDraftLength(replace(speculation, num_draft_tokens=most), pair)
