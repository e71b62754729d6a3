"""What filters keep: against mlx-lm's own, and against the definition where tokens are tied."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, apply_xtc

from tests.sampling_support import batch_of


def kept_tokens(option: dict[str, Any], logits: np.ndarray) -> list[bool]:
    """Tokens that can be sampled: so hot that all of those are among many samples."""
    vocabulary = len(logits)
    # A second row with other filters: a threshold of one row must not reach the other.
    batch = batch_of([{**option, "temperature": 100.0}, {"temperature": 1.0, "top_k": 2}])
    draws = 14 * vocabulary
    both = mx.broadcast_to(mx.array(logits), (2, draws, vocabulary))
    chosen = np.array(batch.choose(both, mx.broadcast_to(mx.arange(draws), (2, draws))))
    assert set(chosen[1]) <= set(np.argsort(-logits, kind="stable")[:2])
    return [bool(token in chosen[0]) for token in range(vocabulary)]


def mlx_lm_kept(option: dict[str, Any], logits: np.ndarray) -> list[bool]:
    """The same by mlx-lm's public functions, in the order of its ``make_sampler``."""
    logprobs = mx.array(logits) - mx.logsumexp(mx.array(logits))
    logprobs = logprobs[None]
    if option.get("top_p", 1.0) < 1.0:
        logprobs = apply_top_p(logprobs, option["top_p"])
    if option.get("min_p", 0.0):
        logprobs = apply_min_p(logprobs, option["min_p"], option.get("min_tokens_to_keep", 1))
    if option.get("xtc_probability", 0):
        special = option.get("xtc_special_tokens", [])
        logprobs = apply_xtc(logprobs, 1.0, option["xtc_threshold"], special)
    if option.get("top_k", 0):
        logprobs = apply_top_k(logprobs, option["top_k"])
    return [bool(value) for value in np.isfinite(np.array(logprobs[0]))]


@pytest.mark.parametrize(
    "option",
    [
        {"top_p": 0.01},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 36},
        {"min_p": 0.001},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_p": 0.7, "top_k": 4},
        {"top_p": 0.95, "min_p": 0.05},
        {"top_p": 0.8, "top_k": 9, "min_p": 0.03},
        {"min_p": 0.4, "min_tokens_to_keep": 6},
        {"min_p": 0.01, "min_tokens_to_keep": 3},
        {"min_p": 1.0, "min_tokens_to_keep": 30},
        {"top_p": 0.5, "min_p": 0.6, "min_tokens_to_keep": 8},
        {"top_k": 4, "min_p": 0.6, "min_tokens_to_keep": 8},
        {"top_p": 0.9, "top_k": 9, "min_p": 0.6, "min_tokens_to_keep": 4},
        {"xtc_probability": 1.0, "xtc_threshold": 0.03},
        {"xtc_probability": 1.0, "xtc_threshold": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.02, "top_k": 5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.06, "top_p": 0.7},
        {"xtc_probability": 1.0, "xtc_threshold": 0.02, "min_p": 0.1, "top_k": 3, "top_p": 0.95},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01, "xtc_special_tokens": [2, 30, 11]},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01, "xtc_special_tokens": [*range(37)]},
        {
            "xtc_probability": 1.0,
            "xtc_threshold": 0.01,
            "xtc_special_tokens": [*range(0, 37, 2)],
            "top_k": 2,
        },
    ],
    ids=str,
)
def test_filters_keep_the_tokens_that_mlx_lm_keeps(option: dict[str, Any]) -> None:
    """Stops an off-by-one in the nucleus, filters on tempered probabilities, and a wrong order."""
    rng = np.random.default_rng(11)
    for scale in (0.3, 1.0, 4.0):
        logits = rng.normal(0, scale, 37).astype(np.float32)
        kept = kept_tokens({"temperature": 0.5, **option}, logits)
        assert kept == mlx_lm_kept(option, logits)
        assert any(kept)


def ranked_kept(option: dict[str, Any], logits: np.ndarray) -> list[bool]:
    """The definition: one ranking, the lower id first among equals, and its first so many."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    before = np.concatenate([[0.0], np.cumsum([chances[token] for token in order])])
    kept = [
        place < (option.get("top_k") or len(order))
        and (option.get("top_p", 1.0) >= 1 or before[place] < option["top_p"])
        and chances[token] >= option.get("min_p", 0.0) * chances.max()
        for place, token in enumerate(order)
    ]
    return [bool(kept[order.index(token)]) for token in range(len(logits))]


@given(
    logits=st.lists(st.integers(0, 3), min_size=2, max_size=12),
    # Away from sums of the chances, where rounding decides.
    option=st.sampled_from(
        [
            *({"top_k": k} for k in (1, 2, 3, 7, 12)),
            *({"top_p": p} for p in (0.0123, 0.3217, 0.5771, 0.9371)),
            *({"min_p": p} for p in (0.03, 0.2, 0.8)),
            {"top_k": 3, "min_p": 0.2},
            {"top_k": 5, "top_p": 0.7719},
            {"top_k": 2, "top_p": 0.5771, "min_p": 0.03},
        ]
    ),
)
@settings(max_examples=150, deadline=None)
def test_ties_are_broken_by_token_id(logits: list[int], option: dict[str, Any]) -> None:
    """Stops a top-k that keeps more than k, in bfloat16 one time in ten."""
    values = np.array(logits, np.float32)
    assert kept_tokens({"temperature": 1.0, **option}, values) == ranked_kept(option, values)


def test_top_k_of_one_is_greedy() -> None:
    logits = mx.array(np.random.default_rng(2).integers(0, 3, (2, 40, 20)).astype(np.float32))
    batch = batch_of([{"temperature": 1.5, "top_k": 1}, {"temperature": 1.0}])
    positions = mx.broadcast_to(mx.arange(40), (2, 40))
    chosen = batch.choose(logits, positions)
    assert chosen[0].tolist() == mx.argmax(logits[0], axis=-1).tolist()


def test_a_top_k_beyond_the_vocabulary_keeps_all() -> None:
    """Stops an index past the last rank."""
    logits = np.random.default_rng(1).normal(0, 1, 9).astype(np.float32)
    assert all(kept_tokens({"temperature": 1.0, "top_k": 10}, logits))
    assert all(kept_tokens({"temperature": 1.0, "top_k": 2**31 - 1}, logits))


def test_a_huge_top_k_keeps_all() -> None:
    """Stops a foreign error from a value that was accepted."""
    logits = np.random.default_rng(1).normal(0, 1, 9).astype(np.float32)
    assert all(kept_tokens({"temperature": 1.0, "top_k": 2**31}, logits))
