"""Drafter and draft-length policy, as the options ask for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mlx_spec.cache.device import plans_by_shape
from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.demand import RowDemand
from mlx_spec.control.drafting import CostlyDraft
from mlx_spec.control.filled import FilledDrafts
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.given import GivenGuesses
from mlx_spec.control.offers import FixedSources, SourceChoice
from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.control.shared import measurements_of
from mlx_spec.control.step_prices import StepPrices
from mlx_spec.decoding.acceptance import AcceptanceRule, SharedNoise
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.decoding.drafters.chain import ChainDrafter
from mlx_spec.decoding.drafters.none import NoDraft
from mlx_spec.decoding.drafters.registry import FREE, GIVEN, DraftParts, kind_of, make
from mlx_spec.decoding.rejection import RejectionSampling
from mlx_spec.decoding.rules.grammar import GrammarRule
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.pace import on_cpu
from mlx_spec.model.ranks import Ranks, whole_layers

_ACCEPTANCE: dict[str, Callable[[], AcceptanceRule]] = {
    "shared_noise": SharedNoise,
    "rejection": RejectionSampling,
}


def make_acceptance(speculation: SpeculationConfig) -> AcceptanceRule:
    """What says which draft tokens stand."""
    return _ACCEPTANCE[speculation.acceptance]()


def make_grammar_rule(ranks: Ranks) -> GrammarRule:
    """What masks logits; several ranks look at every guess, since they know no time alike."""
    return GrammarRule(math.inf) if ranks.several else GrammarRule()


def _check_ranks(parts: DraftParts) -> None:
    """Before a target is drafted for that several ranks may hold.

    Raises:
        UnsupportedModel: its parts are run in different ways, or a drafter asks for all of it.
    """
    runner, ranks = parts.runner, parts.runner.ranks
    if not ranks.several:
        return
    own = (repr(runner.support.form), repr(runner.pads), runner.pool.folds, runner.vocabulary)
    ways = ranks.gather("way of running the model", own)
    if any(way != ways[0] for way in ways):
        raise UnsupportedModel(
            f"[SpeculativeDecoder] the {ranks.kind} parts of the model are run in different ways "
            f"({'; '.join(map(str, ways))}); divide it otherwise"
        )
    asked = _layers_asked(parts) if ranks.kind == "pipeline" else ""
    if asked:
        raise UnsupportedModel(
            f"[SpeculationConfig] {asked}, and each of {ranks.size} ranks has some only; use a "
            "draft model, a head that reads the last hidden state, ngram or lookahead"
        )


def _layers_asked(parts: DraftParts) -> str:
    """Which drafter wants layers in the middle of the target, in words; empty for none."""
    kinds = parts.speculation.kinds(kind_of(parts.draft_model))
    if "self" in kinds:
        return "draft='self' runs layers of the whole model"
    head = parts.draft_model if "head" in kinds else None
    layers = head.reads(whole_layers(parts.runner.model)).layers if head is not None else ()
    if not layers:
        return ""
    return f"this draft head reads layers {', '.join(map(str, layers))}"


def used_model(draft_model: Any, speculation: SpeculationConfig) -> Any:
    """The draft model where anything is drafted with it, else None; what is not is not kept."""
    return draft_model if speculation.takes_model else None


def make_drafter(parts: DraftParts) -> Drafter:
    """What drafts, or the null object where nothing is to be drafted.

    Raises:
        InvalidRequest: a drafter that is asked for lacks a part.
        UnsupportedModel: a model that it would run cannot.
    """
    _check_ranks(parts)
    kinds = parts.speculation.kinds(kind_of(parts.draft_model))
    runner = parts.runner
    given = parts.tokenizer is not None and runner.support.verdict != "near-ties"
    if parts.speculation.off or not (kinds or given):
        return NoDraft()
    # What a constraint forces or a caller predicts is drafted wherever there can be such (which
    # needs a tokenizer), also where nobody asked for guesses: while no row has any, nothing is.
    free_kinds = (*GIVEN, *kinds) if parts.tokenizer is not None else kinds
    free = [make(kind, parts) for kind in FREE if kind in free_kinds]
    costly = [make(kind, parts) for kind in kinds if kind not in FREE]
    if not free and len(costly) == 1:
        return costly[0]
    return ChainDrafter(free, costly)


def only_given(drafter: Drafter, speculation: SpeculationConfig) -> bool:
    """Whether nobody asked for guesses, so that only rows that bring some themselves have any."""
    names = {each.name for each in drafter.members} if isinstance(drafter, ChainDrafter) else {""}
    return names <= set(GIVEN) and not speculation.named


def most_draft_tokens(drafter: Drafter, speculation: SpeculationConfig) -> int:
    """The longest draft: what is asked for, as far as the drafter can."""
    most = speculation.num_draft_tokens
    return most if drafter.max_draft_tokens is None else min(most, drafter.max_draft_tokens)


@dataclass(frozen=True)
class PolicyParts:
    """What a policy goes by.

    Attributes:
        owners: the models, of whose pair measurements are shared.
        prices: what steps cost.
        demand: requests that want a row, where somebody knows of them.
        reads: whether the members of a chain may be asked how sure they are (``may_be_read``).
        fills: whether the device may go by that alone (``may_be_filled``).
    """

    owners: tuple[Any, Any]
    prices: StepPrices
    demand: RowDemand | None = None
    reads: bool = False
    fills: bool = False


def make_policy(
    drafter: Drafter, speculation: SpeculationConfig, parts: PolicyParts
) -> DraftLengthPolicy:
    """What chooses the draft length: fixed, or adaptive within what the drafter can do.

    Args:
        drafter: what drafts.
        speculation: how far to guess.
        parts: what it goes by.
    """
    most = most_draft_tokens(drafter, speculation)
    if isinstance(drafter, ChainDrafter) and only_given(drafter, speculation):
        free = drafter.free
        drafter.choice = GivenGuesses(
            most, lambda: any(each.needs_host for each in free), lambda: parts.prices.packs
        )
        return drafter.choice
    config = replace(speculation, num_draft_tokens=most)
    adaptive = most > 0 and speculation.adaptive
    if isinstance(drafter, ChainDrafter):
        if adaptive:
            drafter.choice = _chosen(drafter, config, parts)
        else:
            drafter.choice = FixedSources(most, [each.name for each in drafter.costly])
        return drafter.choice
    if not adaptive:
        return FixedDraftLength(most)
    pair, prices = measurements_of(*parts.owners, drafter.name), parts.prices
    costly = [CostlyDraft(drafter.name, most, prices, pair)]
    return AdaptiveDrafts(config, prices, costly, demand=parts.demand)


def _chosen(chain: ChainDrafter, config: SpeculationConfig, parts: PolicyParts) -> SourceChoice:
    """What chooses among the members of a chain."""
    owners, prices = parts.owners, parts.prices
    costly = [
        CostlyDraft(
            each.name, most_draft_tokens(each, config), prices, measurements_of(*owners, each.name)
        )
        for each in chain.costly
    ]
    found = measurements_of(*owners, "+".join(each.name for each in chain.free))
    free = chain.free  # no way back to the chain: who drops a decoder gets its memory at once

    def asks() -> bool:
        return any(each.needs_host for each in free)

    kind = FilledDrafts if parts.fills else AdaptiveDrafts
    return kind(
        config, prices, costly, found.acceptance, asks, reads=parts.reads, demand=parts.demand
    )


def may_be_read(config: SpeculationConfig, ranks: Ranks) -> bool:
    """Whether guesses may be picked once it is known how sure the drafter is of them.

    Rejection sampling would be biased by it: guesses that were thought likely would stand oftener
    than they may (``rejection``). A GPU would wait while the verify pass is described. And several
    ranks would have to share what each has read.
    """
    return on_cpu() and config.acceptance != "rejection" and not ranks.several


def may_be_filled(config: SpeculationConfig, ranks: Ranks) -> bool:
    """Whether the device may say whose guesses are verified, by how sure the drafter is of them:
    where that is not read (above), and as little under rejection sampling or over several ranks.

    Not on CUDA, where four rows were the slower for it (docs/LOG.md).
    """
    elsewhere = config.acceptance != "rejection" and not ranks.several
    return elsewhere and not on_cpu() and not plans_by_shape()
