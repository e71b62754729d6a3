"""Rejection sampling: tokens are distributed as the target's own, whatever is drafted.

Chi-square on the joint distribution of two tokens in a row, over thousands of rows (seeds) of one
batch with ragged drafts, some filtered; target and draft are tables of the token before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding import acceptance, rejection
from mlx_spec.decoding.acceptance import DraftTrial
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import Draft
from mlx_spec.decoding.rejection import RejectionSampling
from mlx_spec.decoding.rules.base import Judged
from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.decoding.step import Proposal
from mlx_spec.errors import InvalidRequest
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.preemption import preempt
from tests.scenario import make_jobs, noisy_draft, target

Patch = pytest.MonkeyPatch
VOCABULARY, ROWS, MOST = 4, 4800, 2
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.8},
]
# Logits by the token before: of the target, of a draft that is right now and then.
TARGET = np.random.default_rng(3).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)
DRAFT = TARGET + 0.8 * np.random.default_rng(4).normal(size=TARGET.shape).astype(np.float32)


@cache
def sampling() -> SamplingBatch:
    return SamplingBatch.of(
        [Sequence([0], SamplingParams(seed=row, **OPTIONS[row % 3])) for row in range(ROWS)]
    )


def guesses(before: mx.array, positions: mx.array, *, sure: bool) -> Draft:
    """A draft of MOST: drawn from the table, or the likeliest by it without probabilities."""
    tokens, drawn, apart = [before], [], sampling().apart
    for place in range(MOST):
        logits, where = mx.array(DRAFT)[tokens[-1]], positions[:, place : place + 1]
        drawn.append(apart.probabilities(logits, where))
        best = mx.argmax(logits, axis=-1).astype(mx.int32)
        tokens.append(best if sure else apart.choose(logits, where))
    return Draft(
        mx.concatenate(tokens[1:], axis=1),
        probabilities=None if sure else mx.concatenate(drawn, axis=1),
    )


def two_tokens(
    *, sure: bool = False, target: np.ndarray = TARGET, forbidden: int = -1
) -> tuple[np.ndarray, float]:
    """The first two tokens of each row, and the share of its guesses that stood.

    A token that is forbidden is cut off the drafts as a grammar does it.
    """
    said = [[] for _ in range(ROWS)]  # type: list[list[int]]
    rng, stood, tested = random.Random(1), 0, 0
    while min(map(len, said)) < 2:
        before = mx.array([[row[-1] if row else 0] for row in said])
        positions = mx.array([[len(row) + i for i in range(MOST + 1)] for row in said])
        draft = guesses(before, positions, sure=sure)
        lengths = [rng.randint(0, MOST) for _ in said]
        before_it = [[*row, forbidden].index(forbidden) for row in draft.tokens.tolist()]
        proposal = Proposal(draft.tokens, lengths, mx.array(lengths, mx.int32), [""] * ROWS).judged(
            Judged(before_it, [one + 1 for one in before_it])
        )
        counts = proposal.counted if proposal.tested is None else proposal.tested
        logits = mx.array(target)[mx.concatenate([before, draft.tokens], axis=1)]
        samples = sampling().choose(logits, positions)
        tokens, accepted = RejectionSampling().judge(
            DraftTrial(
                draft.tokens, counts, draft.probabilities, logits, positions, samples, sampling()
            )
        )
        emitted = zip(said, tokens.tolist(), accepted.tolist(), strict=True)
        for row, own, count in emitted:
            row.extend(own[: count + 1])
        stood, tested = stood + accepted.sum().item(), tested + counts.sum().item()
    return np.array([row[:2] for row in said]), stood / tested


def expected(option: dict[str, Any], target: np.ndarray = TARGET) -> np.ndarray:
    """[V, V]: the probability of two tokens after token 0, by the definition of the filters."""

    def kept(logits: np.ndarray) -> np.ndarray:
        plain = np.exp(logits - logits.max())
        order = np.argsort(-plain, kind="stable")
        before = np.cumsum(plain[order]) / plain.sum() - plain[order] / plain.sum()
        last = min(option.get("top_k", VOCABULARY), (before < option.get("top_p", 1.0)).sum())
        tempered = np.exp((logits - logits.max()) / option["temperature"])
        tempered[order[last:]] = 0
        return np.asarray(tempered / tempered.sum())

    first = kept(target[0])
    return np.array([first[token] * kept(target[token]) for token in range(VOCABULARY)])


def excess(said: np.ndarray, target: np.ndarray = TARGET) -> float:
    """The most standard deviations by which chi-square is beyond its mean, over the options."""
    worst = 0.0
    for kind, option in enumerate(OPTIONS):
        own, chances = said[kind::3], expected(option, target).reshape(-1)
        seen = np.bincount(own[:, 0] * VOCABULARY + own[:, 1], minlength=VOCABULARY**2)
        assert not seen[chances == 0].any()
        hoped = len(own) * chances[chances > 0]
        square = ((seen[chances > 0] - hoped) ** 2 / hoped).sum()
        free = len(hoped) - 1
        worst = max(worst, (square - free) / (2 * free) ** 0.5)
    return worst


@pytest.mark.parametrize("sure", [False, True])
def test_two_tokens_are_distributed_as_the_target_s(sure: bool) -> None:
    said, share = two_tokens(sure=sure)
    assert excess(said) < 3.5
    assert 0.1 < share < 0.9


FORBIDDEN = 0
RULED = np.where(np.arange(VOCABULARY) == FORBIDDEN, -np.inf, TARGET)


def cut_before_what_is_forbidden(patch: Patch) -> None:
    """What a grammar forbids is taken out of the draft, and not tested."""

    def planted(self: Proposal, by: Judged) -> Proposal:
        return replace(self, counted=mx.minimum(self.counted, mx.array(by.counted, mx.int32)))

    patch.setattr(Proposal, "judged", planted)


def test_what_a_grammar_forbids_is_refused_as_any_other_guess(monkeypatch: Patch) -> None:
    said, _ = two_tokens(target=RULED, forbidden=FORBIDDEN)
    assert excess(said, RULED) < 3.5
    cut_before_what_is_forbidden(monkeypatch)
    assert excess(two_tokens(target=RULED, forbidden=FORBIDDEN)[0], RULED) > 3.5


def selection_bias(patch: Patch) -> None:
    """A guess that the drafter thought unlikely is not tested."""
    right = RejectionSampling.judge

    def planted(self: RejectionSampling, trial: DraftTrial) -> Any:
        own = mx.take_along_axis(trial.probabilities, trial.draft[..., None], axis=-1)[..., 0]
        likely = mx.cumprod((own > 0.25).astype(mx.int32), axis=1).sum(axis=1)
        object.__setattr__(trial, "counts", mx.minimum(trial.counts, likely))
        return right(self, trial)

    patch.setattr(RejectionSampling, "judge", planted)


def row_coupling(patch: Patch) -> None:
    """No row accepts more than its neighbour; what it then lacks is drawn anew."""
    right = RejectionSampling.judge

    def planted(self: RejectionSampling, trial: DraftTrial) -> Any:
        tokens, accepted = right(self, trial)
        fewer = mx.minimum(accepted, mx.roll(accepted, 1))
        anew = (mx.arange(MOST + 1) == fewer[:, None]) & (fewer < accepted)[:, None]
        return mx.where(anew, trial.samples, tokens), fewer

    patch.setattr(RejectionSampling, "judge", planted)


def missing_residual(patch: Patch) -> None:
    """What falls is drawn again from all that the target says."""
    patch.setattr(
        rejection._TriedRows,
        "_residual",
        lambda self, sampling: self.samples[:, :-1],
    )


def bonus_from_the_draft(patch: Patch) -> None:
    """The token behind a draft that stands is the draft's."""
    right = RejectionSampling.judge

    def planted(self: RejectionSampling, trial: DraftTrial) -> Any:
        before = mx.concatenate([mx.zeros((ROWS, 1), mx.int32), trial.draft], axis=1)
        theirs = trial.sampling.choose(mx.array(DRAFT)[before], trial.positions)
        object.__setattr__(trial, "samples", theirs)
        return right(self, trial)

    patch.setattr(RejectionSampling, "judge", planted)


@pytest.mark.parametrize(
    "plant", [selection_bias, row_coupling, missing_residual, bonus_from_the_draft]
)
def test_a_planted_bias_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    said, _ = two_tokens()
    with pytest.raises(AssertionError):
        assert excess(said) < 3.5


REJECTION = SpeculationConfig(acceptance="rejection", num_draft_tokens=3)


def decoder(draft: Any, rows: int, model: Any = None) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        model or target("llama"),
        draft_model=draft,
        speculation=REJECTION,
        batching=BatchingConfig(batch_size=rows),
        policy=RaggedPolicy(3),
    )


def test_a_model_s_draft_in_a_decoder() -> None:
    """Two tokens by a real target and a real draft, rows joining and leaving all the time."""
    model, other = (make_model("llama", vocab_size=3, seed=seed) for seed in (0, 1))
    count, options = 900, {"temperature": 1.5, "max_tokens": 2}
    rows = [Sequence([1, 2], SamplingParams(seed=seed, **options)) for seed in range(count)]
    running, todo = decoder(other, 300, model), list(rows)
    while todo or running.busy:
        joining = todo[: running.free_rows]
        todo = todo[len(joining) :]
        running.add(joining)
        running.step()
    first = np.array(mx.softmax(model(mx.array([[1, 2]]))[0, -1] / 1.5))
    second = [np.array(mx.softmax(model(mx.array([[1, 2, t]]))[0, -1] / 1.5)) for t in range(3)]
    chances = np.array([first[token] * second[token] for token in range(3)]).reshape(-1)
    seen = np.bincount([3 * row.tokens[0] + row.tokens[1] for row in rows], minlength=9)
    square = ((seen - count * chances) ** 2 / (count * chances)).sum()
    assert (square - 8) / 4 < 3.5
    assert sum(row.accepted for row in rows) > 100
    assert sum(row.drafted - row.accepted for row in rows) > 30


def test_greedy_rows_are_exact_beside_sampling_ones() -> None:
    """Joins, leaves and a preemption; the sampling rows draft, and come out alike again."""
    jobs = [make_jobs("llama", i % 2 == 1, 6)[i] for i in range(6)]

    def ran() -> list[Sequence]:
        rows = [Sequence(list(job.prompt), job.sampling) for job in jobs]
        for row, job in zip(rows, jobs, strict=True):
            row.stop_ids = frozenset(job.sampling.stop_ids)
        preempt(decoder(noisy_draft("llama"), 3), rows)
        return rows

    rows = ran()
    assert [row.tokens for row in rows[::2]] == [list(job.expected) for job in jobs[::2]]
    assert [row.tokens for row in rows] == [row.tokens for row in ran()]
    assert [row.tokens for row in rows[1::2]] != [list(job.expected) for job in jobs[1::2]]
    assert all(row.drafted > row.accepted for row in rows)
    assert sum(row.accepted for row in rows[1::2]) > 3


def test_without_a_draft_it_is_plain_sampling() -> None:
    """The same tokens as ever for a seed: what is not tested is drawn by the same noise."""
    job = make_jobs("llama", True, 4)[1]
    running = SpeculativeDecoder(target("llama"), speculation=REJECTION)
    row = Sequence(list(job.prompt), job.sampling)
    running.add([row])
    while running.busy:
        running.step()
    assert tuple(row.tokens) == job.expected


def test_another_rule_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="acceptance='typical', expected one of"):
        SpeculationConfig(acceptance="typical")


def test_a_draft_that_is_no_number_changes_nothing() -> None:
    """Its row draws from the target itself."""
    said = two_tokens()[0]
    before, positions = mx.zeros((ROWS, 1), mx.int32), mx.broadcast_to(mx.arange(3), (ROWS, 3))
    draft = guesses(before, positions, sure=False)
    logits = mx.array(TARGET)[mx.concatenate([before, draft.tokens], axis=1)]
    samples = sampling().choose(logits, positions)
    trial = DraftTrial(
        draft.tokens,
        mx.full((ROWS,), 2),
        mx.full((ROWS, 2, VOCABULARY), mx.nan),
        logits,
        positions,
        samples,
        sampling(),
    )
    tokens, accepted = RejectionSampling().judge(trial)
    assert accepted.max().item() == 0
    first = np.bincount(tokens[:, 0].tolist(), minlength=VOCABULARY)
    assert np.abs(first - np.bincount(said[:, 0], minlength=VOCABULARY)).max() < ROWS / 15
    assert acceptance.SharedNoise().judge(trial)[0] is samples
