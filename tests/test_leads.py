"""How far chosen tokens lead: against all scores of the race, made by hand."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import metal_kernels
from metal_kernels.lead import COLUMNS, HEIGHT, leads
from metal_kernels.noise import gumbel_noise, seed_words

SEEDS, TEMPERATURES = [3, 2**40 + 1, 5, 8], [0.8, 0.0, 1.3, 0.8]


def rows_of(temperatures: list[float] = TEMPERATURES) -> metal_kernels.SampleRows:
    return metal_kernels.SampleRows.of(SEEDS[: len(temperatures)], temperatures)


def logits_of(vocabulary: int, places: int = 2, seed: int = 0) -> mx.array:
    """[4, places, V] as models have them: a few tokens far above the others."""
    luck = np.random.default_rng(seed)
    values = luck.normal(size=(4, places, vocabulary)) - 5.0 - np.log(vocabulary)
    high = luck.integers(0, vocabulary, size=(4, places, 6))
    np.put_along_axis(values, high, luck.normal(size=high.shape) * 2.0, axis=-1)
    return mx.array(values.astype(np.float32))


def scores(logits: mx.array, positions: mx.array) -> np.ndarray:
    """[4, N, V] float64: all scores of the race; of greedy rows the logits."""
    noise = gumbel_noise(
        mx.array([seed_words(s) for s in SEEDS], mx.uint32), positions, logits.shape[-1]
    )
    rates = np.array([1 / t if t else 1.0 for t in TEMPERATURES])[:, None, None]
    sampled = np.array([t > 0 for t in TEMPERATURES])[:, None, None]
    return np.array(logits, np.float64) * rates + sampled * np.array(noise, np.float64)


def shares(values: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[4, N]: of a token in the softmax of scores."""
    likely = np.exp(values - values.max(axis=-1, keepdims=True))
    likely /= likely.sum(axis=-1, keepdims=True)
    return np.take_along_axis(likely, tokens[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("vocabulary", [7, 100, COLUMNS * HEIGHT + HEIGHT - 1])
def test_of_few_tokens_it_is_the_softmax_of_their_scores(vocabulary: int) -> None:
    """Whatever was chosen, the best or another."""
    logits = logits_of(vocabulary)
    positions = mx.array([[5, 6], [9, 10], [0, 1], [70, 71]])
    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(0, vocabulary, size=(4, 2)).astype(np.int32)
        said = np.array(leads(logits, positions, rows_of(), mx.array(tokens)))
        assert said == pytest.approx(shares(scores(logits, positions), tokens), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("vocabulary", [3000, 49_157])
def test_of_many_it_is_that_among_those_of_high_logits(vocabulary: int) -> None:
    """Never less than of all, since rivals are missing, and for what a model says hardly more."""
    logits = logits_of(vocabulary, places=8)
    positions = mx.arange(8)[None] + mx.array([[5], [9], [0], [70]])
    sampled = metal_kernels.sample(logits, positions, rows_of()).tokens
    said = np.array(leads(logits, positions, rows_of(), sampled))
    full = shares(scores(logits, positions), np.array(sampled))
    assert (said > full - 1e-5).all()
    greedy = [row for row, temperature in enumerate(TEMPERATURES) if not temperature]
    assert np.corrcoef(said.flatten(), full.flatten())[0, 1] > 0.9
    assert said[greedy] == pytest.approx(full[greedy], abs=0.3)


def test_a_row_says_alone_what_it_says_in_a_batch() -> None:
    logits, positions = logits_of(3000), mx.array([[5, 6], [9, 10], [0, 1], [70, 71]])
    tokens = metal_kernels.sample(logits, positions, rows_of()).tokens
    said = leads(logits, positions, rows_of(), tokens)
    for row in range(4):
        own = slice(row, row + 1)
        alone = metal_kernels.SampleRows.of([SEEDS[row]], [TEMPERATURES[row]])
        assert mx.array_equal(leads(logits[own], positions[own], alone, tokens[own]), said[own])


def test_it_tells_more_of_agreement_than_a_probability_does() -> None:
    """A draft whose logits are the target's and something else, under the same noise: what both
    choose leads by more than what only one of them does."""
    luck, vocabulary = np.random.default_rng(1), 400
    logits = logits_of(vocabulary, places=200, seed=2)
    other = logits + mx.array(luck.normal(size=logits.shape).astype(np.float32))
    rows, positions = rows_of([0.8] * 4), mx.broadcast_to(mx.arange(200)[None], (4, 200))
    chosen = metal_kernels.sample(logits, positions, rows).tokens
    stands = np.array(chosen == metal_kernels.sample(other, positions, rows).tokens).flatten()
    lead = np.array(leads(logits, positions, rows, chosen)).flatten()
    probable = shares(np.array(logits, np.float64), np.array(chosen)).flatten()

    def tells(number: np.ndarray) -> float:
        """How often a guess that stands has a higher number than one that does not."""
        right, wrong = number[stands], number[~stands]
        return float((right[:, None] > wrong[None]).mean())

    assert 0.1 < stands.mean() < 0.9
    assert tells(lead) > tells(probable) + 0.05


def test_a_token_without_rivals_and_one_that_cannot_be() -> None:
    logits = mx.full((4, 1, 2000), -mx.inf)
    logits[..., 1999] = 1.0  # in no column of the whole ones
    logits[2:, :, 3] = 0.5
    positions = mx.zeros((4, 1), mx.int32)
    said = leads(logits, positions, rows_of(), mx.full((4, 1), 1999, mx.int32))
    assert said[:2].flatten().tolist() == [1.0, 1.0]
    never = leads(logits, positions, rows_of(), mx.full((4, 1), 77, mx.int32))
    assert never[2:].flatten().tolist() == [0.0, 0.0]
