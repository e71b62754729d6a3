"""The phases of a step, in their order: propose, verify, choose, commit.

Each describes its part of the graph and computes nothing; the drivers (``drivers``) say when what
is launched and when the host reads. What the phases take and change is in ``StepParts``.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import mlx.core as mx

from mlx_spec.cache.filled import filled_packing
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.control.step_prices import StepPrices
from mlx_spec.decoding.acceptance import (
    NO_NUMBERS,
    AcceptanceRule,
    DraftTrial,
    SharedNoise,
    refuse_nan,
    refuse_negative,
)
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.drafters.base import (
    Draft,
    DraftContext,
    Drafter,
    FilledGuesses,
    GuessNotes,
)
from mlx_spec.decoding.flight import Flight, StepPlan
from mlx_spec.decoding.heard import Verified
from mlx_spec.decoding.opening import OpeningPass
from mlx_spec.decoding.proposal import Choice
from mlx_spec.decoding.proposal import Proposal as Proposal
from mlx_spec.decoding.rules import (
    LogitsRule,
    RuleContext,
    apply_rules,
    pick_tokens,
    rules_of_tokens,
)
from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.decoding.watching import Chosen, Watcher, watch_all
from mlx_spec.model.ranks import Ranks
from mlx_spec.model.runner import ModelRunner, Rows


@dataclass(frozen=True)
class StepParts:
    """Who takes part in a step.

    Attributes:
        runner: the target with its slots.
        drafter: where guesses come from.
        state: known tokens and lengths of the rows.
        rules: what is done to logits before tokens are chosen, after what the rows' own options do.
        watchers: who reads more of a step than its tokens.
        acceptance: which draft tokens stand.
        prices: say which passes are packed.
    """

    runner: ModelRunner
    drafter: Drafter
    state: BatchState
    rules: Seq[LogitsRule] = ()
    watchers: Seq[Watcher] = ()
    acceptance: AcceptanceRule = field(default_factory=SharedNoise)
    prices: StepPrices = field(default_factory=lambda: StepPrices(PassCosts()))

    @property
    def concerned(self) -> list[LogitsRule]:
        """The rules that have something to do for the present rows, in their order."""
        state = self.state
        every = (*state.rules, *self.rules)
        return [rule for rule in every if rule.concerns(state.sequences)]


def propose(parts: StepParts, plan: StepPlan) -> Proposal:
    """Guess tokens for each row, as many as planned where the drafter can."""
    state, count = parts.state, max(plan.lengths)
    if count == 0:
        parts.drafter.skip()
        none = mx.zeros((len(plan.rows), 0), mx.int32)
        return _proposal(Draft(none), plan, parts)
    context = DraftContext(
        plan.rows,
        state.tokens,
        state.lengths,
        plan.shortest,
        plan.longest,
        parts.acceptance.drafting(state.sampling),
        parts.runner.vocabulary,
        tuple(rule for rule in parts.concerned if not rule.needs_host),
        plan.known,
        begins=plan.begins,
        drawn=GuessNotes() if parts.acceptance.needs_probabilities else None,
    )
    return _proposal(parts.drafter.propose(context, count), plan, parts)


def _proposal(draft: Draft, plan: StepPlan, parts: StepParts) -> Proposal:
    """A draft, cut to what is planned for each row and to what the host knows of it."""
    lengths, rows = plan.lengths, len(plan.rows)
    draft = _of_ranks(draft, parts.runner.ranks)
    tokens, width = draft.tokens, draft.tokens.shape[1]
    if draft.lengths is not None or width < max(lengths):
        known = [width] * rows if draft.lengths is None else draft.lengths
        lengths = [min(planned, own) for planned, own in zip(lengths, known, strict=True)]
    if max(lengths) < width:
        tokens = tokens[:, : max(lengths)]
    counted = mx.array(lengths, mx.int32)
    if draft.counts is not None:
        counted = mx.minimum(counted, draft.counts)
    probabilities = draft.probabilities
    if probabilities is not None:
        probabilities = probabilities[:, : max(lengths)]
    by = [parts.drafter.name] * rows if draft.sources is None else draft.sources
    sources = [source if length else "" for source, length in zip(by, lengths, strict=True)]
    made = Proposal(tokens, lengths, counted, sources, probabilities, passes=draft.passes)
    return _packed(made, plan, parts.prices, draft.filled)


def _packed(
    draft: Proposal, plan: StepPlan, prices: StepPrices, filled: FilledGuesses | None
) -> Proposal:
    """The same with the packing of its pass, if it is to have one."""
    if plan.opens:  # what that reads is packed by itself
        return draft if filled is None else draft.alike(filled)
    counts = [length + 1 for length in draft.lengths]
    if filled is None:
        whole = prices.packed(counts, plan.longest)
        packing = None if whole is None else TokenPacking.of(counts, whole)
        return replace(draft, packing=packing)
    own, width = len(counts) + filled.guesses, max(counts)
    whole = prices.packed_size(len(counts), width, own, plan.longest)
    if whole is None:  # then all may be verified
        return replace(draft, counted=mx.array(draft.lengths, mx.int32), said=filled.said)
    packing = filled_packing(draft.counted + 1, width, own, whole)
    return replace(draft, packing=packing, said=filled.said)


def _of_ranks(draft: Draft, ranks: Ranks) -> Draft:
    """Rank 0's draft: devices of two kinds may guess differently."""
    if not ranks.several or not draft.tokens.shape[1]:
        return draft
    if draft.counts is None:
        return replace(draft, tokens=ranks.chosen(draft.tokens))
    both = ranks.chosen(mx.concatenate([draft.counts[:, None], draft.tokens], axis=1))
    return replace(draft, tokens=both[:, 1:], counts=both[:, 0])


def verify(parts: StepParts, plan: StepPlan, draft: Proposal) -> mx.array:
    """Logits [B, K + 1, V] of the target after each pending token and its draft.

    Of a packed pass [M, 1, V]: ``choose`` knows where they belong.
    """
    state, count = parts.state, draft.tokens.shape[1]
    if plan.opens:
        opening = OpeningPass.of(state, draft.tokens, draft.lengths, parts.prices.packed)
        return opening.behind(parts.runner.forward(opening.rows))
    pending = state.pending()
    return parts.runner.forward(
        Rows(
            mx.concatenate([pending, draft.tokens], axis=1) if count else pending,
            state.seen,
            plan.longest + count,
            uniform=plan.shortest == plan.longest,
            counts=draft.counts,
            at=None if plan.known is None else tuple(known - 1 for known in plan.known),
            tentative=True,
            since=plan.shortest - 1,
            begins=plan.begins,
            packing=draft.packing,
        )
    )


def choose(parts: StepParts, draft: Proposal, logits: mx.array) -> Choice:
    """The target's own tokens, and how far the draft agrees with them."""
    state, count, packing = parts.state, draft.tokens.shape[1], draft.packing
    positions = state.following(count + 1)
    rules = parts.concerned
    context = RuleContext(state.sequences, state.tokens, state.lengths, positions, draft.tokens)
    own, packed = None if packing is None else rules_of_tokens(rules, packing), None
    if packing is None or own is None:
        whole = logits if packing is None else packing.spread(logits[:, 0])
        whole = apply_rules(rules, whole, context)
        tokens, tops = _sampled(state.sampling, whole, positions)
    else:
        if own:
            logits = apply_rules(own, logits, context.of_tokens(packing))
        packed = logits[:, 0]
        whole = packing.spread(packed)  # nobody need read it: then this is not computed
        at = packing.packed(positions)[:, None]
        tokens, tops = map(packing.spread, _sampled(state.sampling, logits, at, packing))
        tokens, tops = tokens[..., 0], tops[..., 0]
    picked = pick_tokens(rules, tokens, whole, context)
    trial = DraftTrial(
        draft.tokens,
        draft.counted if draft.tested is None else draft.tested,
        draft.probabilities,
        whole,
        positions,
        picked,
        state.sampling,
    )
    samples, accepted = parts.acceptance.judge(trial)
    accepted = refuse_nan(accepted, tops)
    if picked is not tokens:
        accepted, samples = refuse_negative(accepted, samples)
    if draft.late:
        accepted[mx.array(draft.late, mx.int32)] = NO_NUMBERS
    if (ranks := parts.runner.ranks).several:
        both = ranks.chosen(mx.concatenate([accepted[:, None], samples], axis=1))
        accepted, samples = both[:, 0], both[:, 1:]
    known = state.sequences, whole, positions, draft.tokens, samples, accepted
    if packing is not None and packing.told is not None:
        packing = packed = None  # who reads of it goes by rows
    chosen = Chosen(*known, packing=packing, packed=packed)
    return Choice(samples, accepted, watch_all(parts.watchers, chosen))


def _sampled(
    sampling: SamplingBatch,
    logits: mx.array,
    positions: mx.array,
    packing: TokenPacking | None = None,
) -> tuple[mx.array, mx.array]:
    """Tokens and largest logits, of rows or of the tokens of a packed pass."""
    if packing is not None and packing.told is not None:
        sampled = sampling.sample_told(logits, positions, packing.told)
    else:
        own = sampling if packing is None else sampling.of_tokens(packing.rows)
        sampled = own.sample(logits, positions, tops=True)
    assert sampled.tops is not None
    return sampled.tokens, sampled.tops


def commit(parts: StepParts, plan: StepPlan, draft: Proposal, choice: Choice) -> Flight:
    """Let each row's length grow by what it gained, which is all that a rollback is."""
    before = parts.state.lengths - 1 if plan.opens else parts.state.seen
    kept = choice.accepted + 1
    parts.runner.commit(kept + before if plan.opens else kept)
    parts.drafter.verified(
        Verified(
            before,
            choice.samples,
            choice.accepted,
            parts.runner.hidden,
        )
    )
    parts.state.append(choice.samples, choice.accepted)
    return Flight(
        plan.rows,
        draft.lengths,
        mx.concatenate([choice.accepted[:, None], draft.counted[:, None], choice.samples], axis=1),
        parts.state.lengths,
        plan.reading,
        gone={plan.rows[row] for row in draft.late},
        extras=choice.extras,
        sources=draft.sources,
        computed=draft.passes,
        tokens=len(plan.rows) + sum(draft.lengths) if plan.opens else draft.computed,
        # A part of a model that begins with what another sends does not depend on the draft.
        first=[draft.tokens] if parts.runner.ranks.kind == "pipeline" else [],
        keys=len(plan.rows) * plan.longest,
        unread=sum(row.length - 1 for row in plan.rows) if plan.opens else 0,
        said=draft.said,
    )
