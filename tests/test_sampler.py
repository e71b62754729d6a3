"""Plain sampling is right: by statistics against the exact softmax. What filters keep is
``test_sampler_filters``'s affair.

Everything else is then held against plain sampling by equality (``test_exactness``), so this is
the place where a wrong distribution would show. All seeds are fixed: a test that passes once
passes always.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metal_kernels.noise import gumbel_noise, seed_words
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.sequence import Sequence
from tests.models import make_model
from tests.sampling_support import batch_of

# Less than this would be seen in one of ten thousand right samplers.
LEAST_P_VALUE = 1e-4

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.5, "top_k": 1},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.9, "top_p": 0.9, "top_k": 5, "min_p": 0.05},
    {"temperature": 3.0, "top_p": 0.97, "top_k": 4, "min_p": 0.01},
]


def noise_of(seeds: Seq[int], positions: Any, vocabulary: int) -> np.ndarray:
    """[B, N, vocabulary] of noise, as sampling rows with these seeds have it."""
    words = mx.array([seed_words(seed) for seed in seeds], mx.uint32)
    return np.array(gumbel_noise(words, mx.array(positions), vocabulary))


def exact(
    logits: np.ndarray,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> np.ndarray:
    """The distribution to sample from, written slowly: filter, then temper, then normalise."""
    logits = logits.astype(np.float64)
    plain = np.exp(logits - logits.max())
    plain /= plain.sum()
    kept: set[int] = set()
    mass = 0.0
    for rank, token in enumerate(np.argsort(-plain, kind="stable")):
        if top_p < 1 and mass >= top_p:
            break
        if top_k and rank >= top_k:
            break
        if plain[token] < min_p * plain.max():
            break
        kept.add(int(token))
        mass += plain[token]
    tempered = np.array(
        [
            np.exp((logit - logits.max()) / temperature) if token in kept else 0.0
            for token, logit in enumerate(logits)
        ]
    )
    return tempered / tempered.sum()


def p_value(samples: np.ndarray, chances: np.ndarray) -> float:
    """Chi-square p-value of ``samples``; 0 if an impossible token is among them."""
    counts = np.bincount(samples.reshape(-1), minlength=len(chances))
    if counts[chances == 0].any():
        return 0.0
    # Rare tokens count together: the test wants at least some five of each kind.
    rare = chances * counts.sum() < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    chances = np.append(chances[~rare], chances[rare].sum())
    counts, chances = counts[chances > 0], chances[chances > 0]
    if len(counts) == 1:
        return 1.0
    return float(stats.chisquare(counts, chances * counts.sum()).pvalue)


# --- (a) the distribution ---------------------------------------------------------------------


def test_the_chi_square_check_itself_notices_small_errors() -> None:
    """Guards the guard: a distribution wrong by a few percent must fail it."""
    right = exact(np.array([0.3, 2.0, -1.0, 1.0]), 1.0)
    wrong = exact(np.array([0.3, 2.0, -1.0, 1.0]), 1.1)
    samples = np.random.default_rng(0).choice(4, 12_000, p=right)
    assert p_value(samples, right) > 0.01
    assert p_value(samples, wrong) < LEAST_P_VALUE


@pytest.mark.parametrize("many", ["positions", "seeds"])
def test_samples_follow_the_exact_distribution_of_each_row(many: str) -> None:
    """Stops a wrong temperature, filter order or noise, and options taken from another row.

    All options run as rows of one batch, each on its own logits; once many positions of one
    seed, once few positions of many seeds (requests differ by seed, tokens by position).
    """
    vocabulary, draws = 7, 12_000
    copies, positions = (1, draws) if many == "positions" else (draws // 6, 6)
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1.5, (len(OPTIONS), vocabulary)).astype(np.float32)
    rows = [(i, option) for _ in range(copies) for i, option in enumerate(OPTIONS)]
    batch = batch_of([option for _, option in rows], range(40, 40 + len(rows)))
    places = np.broadcast_to(np.arange(3, 3 + positions), (len(rows), positions))
    own = mx.array(logits)[mx.array([i for i, _ in rows])]
    wide = mx.broadcast_to(own[:, None], (len(rows), positions, vocabulary))
    samples = np.array(batch.choose(wide, mx.array(places)))
    which = np.array([i for i, _ in rows])
    for i, option in enumerate(OPTIONS):
        assert p_value(samples[which == i], exact(logits[i], **option)) > LEAST_P_VALUE, option


@pytest.mark.parametrize("length", [0, 3], ids=["plain", "speculating"])
def test_decoder_samples_the_models_own_distribution(length: int) -> None:
    """Stops noise or logits of a wrong position or row in the step, which equality of two
    equally wrong paths would hide. Rows are many seeds, two kinds of options in turn.
    """
    rows, vocabulary, prompt = 600, 11, [3, 1, 4, 1, 5]
    model = make_model("llama", vocab_size=vocabulary)
    draft = make_model("llama", seed=1, vocab_size=vocabulary) if length else None
    options: list[dict[str, Any]] = [{"temperature": 1.3}, {"temperature": 0.9, "top_k": 6}]
    decoder = SpeculativeDecoder(
        model,
        draft_model=draft,
        speculation=SpeculationConfig(num_draft_tokens=length, adaptive=False),
        batching=BatchingConfig(batch_size=rows),
    )
    sequences = [
        Sequence(list(prompt), SamplingParams(max_tokens=4, seed=seed, **options[seed % 2]))
        for seed in range(2 * rows)
    ]
    for group in (sequences[:rows], sequences[rows:]):
        decoder.add(group)
        while decoder.busy:
            decoder.step()
    for kind in range(2):
        texts = [sequence.tokens for sequence in sequences[kind::2]]
        common = np.bincount([text[0] for text in texts]).argmax()
        for known, samples in (
            ([], [text[0] for text in texts]),
            ([int(common)], [text[1] for text in texts if text[0] == common]),
        ):
            logits = np.array(model(mx.array([prompt + known]))[0, -1])
            assert len(samples) > 80
            assert p_value(np.array(samples), exact(logits, **options[kind])) > LEAST_P_VALUE


# --- (b) seeds and greedy rows (the noise itself: ``test_noise``) -------------------------------


def test_seeds_beyond_32_bits_are_seeds_of_their_own() -> None:
    """Stops a silent cut to 32 bits, by which 2**32 + 7 would be 7."""
    seeds = (7, 2**32 + 7, 2**40 + 7, 2**64, 2**64 + 7, 2**200)
    words = [Sequence([1], SamplingParams(seed=seed)).seed for seed in seeds]
    assert words[:3] == list(seeds[:3])
    assert len(set(words)) == len(words)
    assert all(0 <= word < 2**64 for word in words)
    noise = noise_of(words, mx.zeros((len(words), 1), mx.int32), 99)
    assert len(np.unique(noise)) == noise.size


def test_greedy_rows_are_handled_by_themselves() -> None:
    """Stops [B, N, vocabulary] of wasted work for rows that neither sample nor filter."""
    assert batch_of([{}, {}]).rows.groups == ()
    mixed = batch_of([{}, OPTIONS[0], OPTIONS[3], {"top_p": 0.5}, OPTIONS[1]]).rows
    assert mixed.greedy == (0, 3)
    assert [(group.rows, group.filters) for group in mixed.groups] == [
        ((1, 4), False),
        ((2,), True),
    ]


# --- (c) greedy rows --------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_greedy_rows_in_a_sampling_batch_are_untouched(data: st.DataObject) -> None:
    """Stops noise, filters or a division by a zero temperature reaching greedy rows."""
    rows, width, vocabulary = data.draw(st.tuples(*[st.integers(2, 6)] * 3))
    values = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(values)
    # Whole numbers: ties are frequent, and the first of them must win in either batch.
    logits = rng.integers(-3, 3, (rows, width, vocabulary)).astype(np.float32)
    greedy = [bool(rng.integers(2)) for _ in range(rows)]
    greedy[0], greedy[-1] = True, False
    filters = {"top_p": 0.3, "top_k": 1}
    options = [
        {"temperature": 0.0, **filters} if is_greedy else OPTIONS[i % len(OPTIONS)]
        for i, is_greedy in enumerate(greedy)
    ]
    batch = batch_of(options)
    positions = mx.arange(rows * width).reshape(rows, width)
    samples = np.array(batch.choose(mx.array(logits), positions))
    alone = np.array(batch_of([{}] * rows).choose(mx.array(logits), positions))
    for i in range(rows):
        if greedy[i]:
            assert (samples[i] == logits[i].argmax(-1)).all()
            assert (samples[i] == alone[i]).all()


@pytest.mark.parametrize(
    "temperature",
    [
        1e-3,
        1e-6,
        1e-38,
    ],
)
def test_a_tiny_temperature_is_nearly_greedy(temperature: float) -> None:
    """Stops overflow: the most probable token, not the first one that became infinite."""
    logits = mx.array([[[5.0, 1.0, 30.0, 7.0]], [[-5.0, -1.0, -3.0, -700.0]]])
    batch = batch_of([{"temperature": temperature}] * 2)
    samples = batch.choose(logits, mx.zeros((2, 1), mx.int32))
    assert samples.tolist() == [[2], [1]]


# --- (e) shapes and types ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [60, 64, 70, 130])
@pytest.mark.parametrize("filtered", [False, True])
def test_models_with_padded_embeddings_share_the_noise(size: int, filtered: bool) -> None:
    """Stops a shape error, and noise that is not aligned with the tokens, when the draft's
    embeddings are padded to another size than the target's (Qwen's are).
    """
    real = 58  # what lies past it, nobody would choose
    option = {"temperature": 1.0, **({"top_p": 0.9} if filtered else {})}
    batch = batch_of([option, {}, option], [5, 6, 7])
    positions = mx.arange(12).reshape(3, 4)
    logits = np.random.default_rng(2).normal(0, 1, (3, 4, size)).astype(np.float32)
    logits[..., :real] = np.random.default_rng(3).normal(0, 1, (3, 4, real))
    logits[..., real:] -= 1000
    samples = np.array(batch.choose(mx.array(logits), positions))
    same = np.array(batch.choose(mx.array(logits[..., :real]), positions))
    assert (samples == same).all()
    assert samples.max() < real
    if not filtered:
        drawn_rows = logits + noise_of([5, 6, 7], positions, size)
        assert (samples[0] == drawn_rows[0].argmax(-1)).all()
        assert (samples[2] == drawn_rows[2].argmax(-1)).all()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_half_precision_logits_are_sampled_in_float32(dtype: mx.Dtype) -> None:
    """Stops sums and noise in 16 bits, where a nucleus over a big vocabulary is nonsense."""
    vocabulary = 5003
    logits = mx.array(np.random.default_rng(3).normal(0, 1, (4, 3, vocabulary))).astype(dtype)
    batch = batch_of([{"temperature": 0.8, "top_p": 0.9}, {}, {"temperature": 1.2}, OPTIONS[8]])
    positions = mx.arange(12).reshape(4, 3)
    samples = batch.choose(logits, positions)
    assert samples.dtype == mx.int32
    assert samples.tolist() == batch.choose(logits.astype(mx.float32), positions).tolist()
