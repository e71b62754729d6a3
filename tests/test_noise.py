"""The noise is good noise: by statistics, at fixed seeds: what passes once passes always."""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metal_kernels.noise import (
    Keys,
    first_word,
    gumbel,
    gumbel_noise,
    row_keys,
    second_word,
    seed_words,
    stream_word,
    token_words,
)

# Less than this would be seen in one of ten thousand right generators.
LEAST_P_VALUE = 1e-4


def words_of(seeds: list[int]) -> mx.array:
    return mx.array([seed_words(seed) for seed in seeds], mx.uint32)


def uniform_words(seeds: list[int], positions: mx.array, tokens: int) -> list[np.ndarray]:
    """First and second words, [B, N, tokens]."""
    one, two = row_keys(words_of(seeds), positions)
    keys = Keys(one[..., None], two[..., None])
    first = first_word(token_words(tokens), keys)
    return [np.array(first), np.array(second_word(first, keys))]


def noise_of(seeds: list[int], positions: Any, tokens: int) -> np.ndarray:
    """[B, N, tokens]."""
    return np.array(gumbel_noise(words_of(seeds), mx.array(positions), tokens))


# --- from words to Gumbel noise ---------------------------------------------------------------


def test_gumbel_is_exact_everywhere() -> None:
    """Stops a tail cut at 32 bits, and a logarithm of a few bits."""
    rng = np.random.default_rng(0)
    edges = np.concatenate([np.arange(300), 2**32 - 1 - np.arange(300), 2**31 + np.arange(-99, 99)])
    first = np.concatenate([rng.integers(0, 2**32, 100_000), edges]).astype(np.uint32)
    second = rng.integers(0, 2**32, len(first)).astype(np.uint32)
    second[-20:] = 0
    ours = np.array(gumbel(mx.array(first), mx.array(second))).astype(np.float64)
    wide = np.longdouble(2) ** 32
    part = (first * wide + second + 0.5) / wide**2
    expected = np.asarray(-np.log(-np.log1p(-part)), np.float64)
    assert np.abs((ours - expected) / np.maximum(1, np.abs(expected))).max() < 3e-7
    ends = gumbel(mx.array([0, 2**32 - 1], mx.uint32), mx.array([0, 2**32 - 1], mx.uint32))
    assert ends.tolist() == pytest.approx([np.log(2.0**65), -np.log(np.log(2.0**65))], abs=1e-5)


def test_larger_words_never_give_larger_noise() -> None:
    """Stops a seam between the two ends from which the number is counted."""
    edges = [0, 2**8, 2**24, 2**31 - 500, 2**31, 2**32 - 1000]
    first = np.concatenate([start + np.arange(1000) for start in edges]).astype(np.uint64)
    first = np.unique(np.minimum(first, 2**32 - 1)).astype(np.uint32)
    noise = np.array(gumbel(mx.array(first), mx.zeros(first.shape, mx.uint32)))
    assert (np.diff(noise) <= 4e-7 * np.maximum(1, np.abs(noise[1:]))).all()


def test_known_values() -> None:
    """Stops a change of the noise, which would break every seed that anybody has noted."""
    noise = gumbel_noise(words_of([0, 1, 2**40 + 5]), mx.array([[0], [1], [70_000]]), 3)
    assert noise[:, 0].tolist() == [
        [-0.7883424758911133, 0.12878789007663727, -0.18760284781455994],
        [1.668473243713379, 0.5201233625411987, 5.662954807281494],
        [-0.22142773866653442, 2.6454179286956787, 0.6956361532211304],
    ]


# --- the distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("word", [0, 1])
def test_words_are_uniform_and_independent_of_each_other(word: int) -> None:
    """High bytes, low bytes, and the one word's high against the other's."""
    words = uniform_words([5, 6, 2**35], mx.arange(60).reshape(3, 20), 4000)
    flat = [part.reshape(-1) for part in words]
    for shift in (0, 8, 16, 24):
        counts = np.bincount((flat[word] >> shift) & 255, minlength=256)
        assert stats.chisquare(counts).pvalue > LEAST_P_VALUE
    pairs = np.bincount(((flat[0] >> 28) << 4 | flat[1] >> 28).astype(np.int64), minlength=256)
    assert stats.chisquare(pairs).pvalue > LEAST_P_VALUE


@pytest.mark.parametrize("along", ["tokens", "positions", "seeds"])
def test_noise_is_gumbel_noise_along_every_axis(along: str) -> None:
    count = 60_000
    if along == "tokens":
        noise = gumbel_noise(words_of([3]), mx.array([[8]]), count)
    elif along == "positions":
        noise = gumbel_noise(words_of([3]), mx.arange(count)[None], 1)
    else:
        noise = gumbel_noise(words_of(list(range(count))), mx.zeros((count, 1), mx.int32), 1)
    assert stats.kstest(np.array(noise).reshape(-1), "gumbel_r").pvalue > LEAST_P_VALUE


def test_the_largest_of_many_are_as_they_should_be() -> None:
    """The extremes decide: maxima over 10,000 tokens, and the largest of ten million."""
    tokens, rows = 10_000, 1000
    words = uniform_words([2**50 + 1], mx.arange(rows)[None], tokens)
    least = np.argmin(words[0][0], axis=1)
    first = np.take_along_axis(words[0][0], least[:, None], axis=1)[:, 0]
    second = np.take_along_axis(words[1][0], least[:, None], axis=1)[:, 0]
    highest = np.array(gumbel(mx.array(first), mx.array(second)))
    assert stats.kstest(highest - np.log(tokens), "gumbel_r").pvalue > LEAST_P_VALUE
    beyond = highest.max() - np.log(tokens * rows)  # a Gumbel variable too
    assert -np.log(-np.log(LEAST_P_VALUE)) < beyond < -np.log(LEAST_P_VALUE)


def test_the_maximum_falls_on_every_token_alike() -> None:
    """Stops tokens that win more often than others."""
    noise = np.array(gumbel_noise(words_of(list(range(40))), mx.arange(40_000).reshape(40, -1), 50))
    counts = np.bincount(noise.argmax(-1).reshape(-1), minlength=50)
    assert stats.chisquare(counts).pvalue > LEAST_P_VALUE


def test_tokens_are_independent_of_each_other_in_twos_and_threes() -> None:
    """Stops a hash that is uniform for each token and still ties some to others.

    Of 60,000 positions: the numbers of pairs and triples, and which three of eight are first.
    """
    first = uniform_words([2], mx.arange(60_000)[None], 12)[0][0]
    values = []
    for a, b in itertools.combinations(range(12), 2):
        cells = (first[:, a] >> 28 << 4 | first[:, b] >> 28).astype(np.int64)
        values.append(stats.chisquare(np.bincount(cells, minlength=256)).pvalue)
    for a, b, c in [(i, i + 1, i + 2) for i in range(10)] + [(0, i, 2 * i) for i in range(1, 6)]:
        cells = first[:, a] >> 29 << 6 | first[:, b] >> 29 << 3 | first[:, c] >> 29
        values.append(stats.chisquare(np.bincount(cells.astype(np.int64), minlength=512)).pvalue)
    assert min(values) > LEAST_P_VALUE
    assert stats.kstest(values, "uniform").pvalue > LEAST_P_VALUE
    order = np.argsort(first[:, :8], axis=1)[:, :3] @ np.array([64, 8, 1])
    counts = np.bincount(order, minlength=512)
    possible = [64 * a + 8 * b + c for a, b, c in itertools.permutations(range(8), 3)]
    assert counts[possible].sum() == len(first)
    assert stats.chisquare(counts[possible]).pvalue > LEAST_P_VALUE


def test_the_gaps_between_the_largest_are_as_they_should_be() -> None:
    """Stops words that lie in a lattice, within rows of 20,000 tokens: gaps of the ten least."""
    tokens = 20_000
    first = uniform_words([9], mx.arange(300)[None], tokens)[0][0]
    least = np.sort(np.partition(first, 10, axis=1)[:, :10], axis=1).astype(np.float64)
    gaps = np.diff(least, axis=1).reshape(-1) * tokens / 2**32
    assert stats.kstest(gaps, "expon").pvalue > LEAST_P_VALUE
    assert all(len(np.unique(row)) == tokens for row in first[:20])


# --- neighbours -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["seed", "position", "token"])
def test_a_flipped_bit_changes_half_of_all_bits(what: str) -> None:
    """Avalanche: each output bit turns with probability one half, whatever input bit was."""
    count = 2000
    rng = np.random.default_rng(1)
    seeds = [int(seed) for seed in rng.integers(0, 2**63, count)]
    positions = rng.integers(0, 2**20, count)
    tokens = rng.integers(0, 2**17, count)
    bits = {"seed": 64, "position": 20, "token": 17}[what]
    before = hashed(seeds, positions, tokens)
    for bit in range(bits):
        flip = 1 << bit
        after = hashed(
            [seed ^ flip for seed in seeds] if what == "seed" else seeds,
            positions ^ flip if what == "position" else positions,
            tokens ^ flip if what == "token" else tokens,
        )
        for one, other in zip(before, after, strict=True):
            turned = (one ^ other)[:, None] >> np.arange(32, dtype=np.uint32) & 1
            assert np.abs(turned.mean(axis=0) - 0.5).max() < 6 * 0.5 / count**0.5, bit


def hashed(seeds: list[int], positions: np.ndarray, tokens: np.ndarray) -> list[np.ndarray]:
    """Both words of one token each."""
    one, two = row_keys(words_of(seeds), mx.array(positions)[:, None])
    keys = Keys(one[:, 0], two[:, 0])
    first = first_word(token_words(2**17)[mx.array(tokens)], keys)
    return [np.array(first), np.array(second_word(first, keys))]


def test_neighbours_are_uncorrelated() -> None:
    """Seeds, positions and tokens next to each other, and the noise against itself shifted."""
    tokens = 20_000
    noise = np.array(gumbel_noise(words_of([7, 8, 2**32 + 7]), mx.array([[5, 6, 7]] * 3), tokens))
    flat = np.exp(-np.exp(-noise.reshape(9, tokens).astype(np.float64)))  # uniform
    bound = 5.5 / tokens**0.5
    assert np.abs(np.corrcoef(flat) - np.eye(9)).max() < bound
    for a, b in itertools.product(range(9), repeat=2):
        for shift in (1, 2, 64, 4096):
            assert abs(np.corrcoef(flat[a, shift:], flat[b, :-shift])[0, 1]) < bound


def test_seeds_share_no_keys() -> None:
    """Stops pairs (seed, position) that stand for another pair's noise."""
    seeds = [
        *range(2000),
        *(seed << 32 for seed in range(1, 2000)),
        *(2**32 + s for s in range(99)),
    ]
    one, two = row_keys(words_of(list(dict.fromkeys(seeds))), mx.arange(50)[None])
    keys = np.array(one).astype(np.uint64) << np.uint64(32) | np.array(two)
    assert len(np.unique(keys)) == keys.size


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_noise_depends_on_seed_position_and_token_only(data: st.DataObject) -> None:
    """Stops noise by row, by place in the step, by its width, by company or by vocabulary."""
    vocabulary = data.draw(st.integers(2, 40))
    seeds = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
    width = data.draw(st.integers(1, 5))
    rows = len(seeds)
    positions = [
        data.draw(st.lists(st.integers(0, 10_000), min_size=width, max_size=width)) for _ in seeds
    ]
    whole = noise_of(seeds, positions, vocabulary)
    order = data.draw(st.permutations(range(rows)))
    moved = noise_of([seeds[i] for i in order], [positions[i] for i in order], vocabulary)
    assert (moved == whole[list(order)]).all()
    row, place = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, width - 1))
    lone = noise_of([seeds[row]], [[positions[row][place]]], vocabulary + 9)
    assert (lone[0, 0, :vocabulary] == whole[row, place]).all()


def test_streams_are_uniform_and_apart_from_each_other_and_from_tokens_noise() -> None:
    """Coins beside the noise: of 40,000 positions, in steps of one, and of as many seeds."""
    count = 40_000
    by_position = row_keys(words_of([7]), mx.arange(count)[None])
    by_seed = row_keys(words_of(list(range(count))), mx.array([[11]]))
    for keys in (by_position, by_seed):
        flat = Keys(keys.one.reshape(-1), keys.two.reshape(-1))
        streams = [np.array(stream_word(flat, stream)) for stream in range(4)]
        streams += [np.array(first_word(token_words(9)[token], flat)) for token in (0, 8)]
        for words in streams:
            counts = np.bincount(words >> 26, minlength=64)
            assert stats.chisquare(counts).pvalue > LEAST_P_VALUE
        values = np.array(streams, np.float64)
        assert np.abs(np.corrcoef(values) - np.eye(len(values))).max() < 5.5 / count**0.5
        assert abs(np.corrcoef(values[1, 1:], values[1, :-1])[0, 1]) < 5.5 / count**0.5
