"""Which drafters there are, by the names that ``--draft`` knows, and who makes each.

A new drafter is a file with a maker in it, a line here and its name in ``config.speculation``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.decoding.drafters.choosing import Guessing
from mlx_spec.decoding.drafters.forced import ForcedDrafter
from mlx_spec.decoding.drafters.head import HeadDrafter
from mlx_spec.decoding.drafters.lookahead import LookaheadDrafter
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.drafters.ngram import NgramDrafter
from mlx_spec.decoding.drafters.predicted import PredictedDrafter
from mlx_spec.decoding.drafters.self_layers import make_self_drafter
from mlx_spec.decoding.drafters.text_model import TextDrafter
from mlx_spec.errors import InvalidRequest, UnsupportedModel
from mlx_spec.model.mapped_runner import MappedRunner
from mlx_spec.model.pairing import check_pair
from mlx_spec.model.replay import Replay, replay_pays
from mlx_spec.model.runner import ModelRunner


@dataclass(frozen=True)
class DraftParts:
    """What a drafter may be made of.

    Attributes:
        runner: the target with its slots.
        draft_model: the model or head that was given, or None. An object with an attribute
            ``draft_kind`` is of that kind, any other is a model.
        tokenizer, draft_tokenizer: where they are known.
        speculation: how far to guess.
        batching: rows, how much is read at once, what is kept of repeated beginnings.
    """

    runner: ModelRunner
    speculation: SpeculationConfig
    batching: BatchingConfig
    draft_model: Any = None
    tokenizer: Any = None
    draft_tokenizer: Any = None


Maker = Callable[[DraftParts], Drafter]


def kind_of(draft_model: Any) -> str | None:
    """Which drafter a draft model is for; None where there is none."""
    return None if draft_model is None else getattr(draft_model, "draft_kind", "model")


def make_model_drafter(parts: DraftParts) -> Drafter:
    """A drafter that runs the draft model.

    Raises:
        InvalidRequest: none was given, or something else.
        UnsupportedModel: it cannot run here, or not over such caches; it is named as the draft.
        TokenizerMismatch: it has too few of the target's tokens.
    """
    if kind_of(parts.draft_model) != "model":
        given = f"a {kind_of(parts.draft_model)}" if parts.draft_model is not None else "none"
        raise InvalidRequest(
            f"[SpeculationConfig] draft={parts.speculation.draft!r} needs a draft model, "
            f"{given} was given"
        )
    batching, pairing = parts.batching, None
    if parts.tokenizer is not None and parts.draft_tokenizer is not None:
        pairing = check_pair(parts.tokenizer, parts.draft_tokenizer)
    model, slots, cache = parts.draft_model, batching.batch_size, batching.cache
    try:
        if pairing is None or pairing.to_draft is None:
            runner = ModelRunner(model, slots, cache)
        else:
            vocabulary = parts.runner.vocabulary
            runner = MappedRunner(model, slots, pairing.to_draft, vocabulary, cache)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"draft model: {error}") from error
    runner.run_by(parts.runner.ranks)
    if pairing is not None and pairing.through_text:
        return TextDrafter(runner, parts.tokenizer, parts.draft_tokenizer, batching)
    replay = Replay(runner) if replay_pays() else None
    return ModelDrafter(runner, batching, replay, Guessing(parts.speculation.draft_temperature))


# Those that look up what they guess, the surest first: a step waits for them on the host, and they
# know how far they go.
FORCED, PREDICTED = "forced", "predicted"
GIVEN = (FORCED, PREDICTED)  # what requests bring themselves
FREE = (*GIVEN, "ngram", "lookahead")


def make_ngram_drafter(parts: DraftParts) -> Drafter:
    """A drafter that looks texts up; nothing of the models is needed."""
    return NgramDrafter(parts.speculation.ngram_shared_bytes)


def make_head_drafter(parts: DraftParts) -> Drafter:
    """A drafter that runs a head.

    Raises:
        InvalidRequest: none was given.
        UnsupportedModel: it does not fit this target.
    """
    if kind_of(parts.draft_model) != "head":
        given = f"a {kind_of(parts.draft_model)}" if parts.draft_model is not None else "none"
        raise InvalidRequest(
            f"[SpeculationConfig] draft={parts.speculation.draft!r} needs a draft head (what "
            f"load() makes of its folder, or make_draft_model(model, path)), {given} was given"
        )
    most = parts.speculation.num_draft_tokens
    return HeadDrafter(parts.draft_model, parts.runner, most)


MAKERS: Mapping[str, Maker] = {
    "head": make_head_drafter,
    FORCED: lambda parts: ForcedDrafter(),
    "lookahead": lambda parts: LookaheadDrafter(),
    "model": make_model_drafter,
    "self": lambda parts: make_self_drafter(parts.runner, parts.speculation, parts.tokenizer),
    "ngram": make_ngram_drafter,
    PREDICTED: lambda parts: PredictedDrafter(
        parts.speculation.num_draft_tokens, parts.runner.vocabulary
    ),
}


def make(kind: str, parts: DraftParts) -> Drafter:
    """The drafter of this name.

    Raises:
        InvalidRequest: it lacks a part.
        UnsupportedModel: a model that it would run cannot.
    """
    if kind not in MAKERS:
        raise InvalidRequest(f"[SpeculationConfig] draft={kind!r} is not there yet")
    drafter = MAKERS[kind](parts)
    drafter.name = kind
    return drafter
