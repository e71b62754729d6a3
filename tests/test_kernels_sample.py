"""Sampling: the kernel takes the reference's tokens, the reference those of a slow full evaluation.

Equality everywhere: noise, scores and cuts are defined bit for bit. That the distribution is right
is ``test_sampler``'s affair; that the noise is good noise, ``test_noise``'s.
"""

from __future__ import annotations

import gc
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metal_kernels import MoreFilters, SampleRows, sample, sample_cuts
from metal_kernels.noise import gumbel_noise
from metal_kernels.sample_cuts import dropped, ranks_of
from tests.kernel_support import DTYPES, normal

SEEDS = (1, 2**40 + 3, 7, 9, 2**64 - 1)
MIXED = SampleRows.of(
    SEEDS, (0.8, 1.2, 0, 1.0, 5.0), (1, 0.9, 0.5, 0.8, 1), (0, 0, 0, 20, 3), (0, 0.01, 0, 0, 0)
)
PLACES = 2


def inputs(vocabulary: int, dtype: mx.Dtype = mx.float32, rows: int = 5) -> tuple[Any, mx.array]:
    """Logits of many ties, since they are rounded, and far apart positions."""
    logits = mx.round(normal(rows, PLACES, vocabulary) * 8) / 4
    return logits.astype(dtype), mx.array([[0, 1], [7, 3], [9, 9], [500, 4], [2**31 - 1, 6]])[:rows]


def mask_of(allowed: np.ndarray) -> mx.array:
    """Bits of [B, N, V] truth values."""
    wide = np.pad(allowed, [(0, 0), (0, 0), (0, -allowed.shape[-1] % 32)])
    bits = wide.reshape(*wide.shape[:2], -1, 32).astype(np.uint64) << np.arange(32, dtype=np.uint64)
    return mx.array(bits.sum(-1).astype(np.uint32))


# --- the kernel -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 31, 100, 4100])
def test_the_kernel_takes_the_references_tokens(gpu: Any, vocabulary: int, dtype: mx.Dtype) -> None:
    """All kinds of rows side by side; widths below a simdgroup, odd, and of two parts."""
    logits, positions = inputs(vocabulary, dtype)
    ours = sample.kernel(logits, positions, MIXED)
    assert ours.tokens.dtype == mx.int32
    assert ours.tokens.tolist() == sample.reference(logits, positions, MIXED).tokens.tolist()


@pytest.mark.parametrize("top_p", [0.02, 0.6, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 7])
def test_the_kernel_cuts_where_the_reference_does(gpu: Any, top_p: float, top_k: int) -> None:
    """Hot rows, so that the last tokens kept are chosen as often as the first."""
    logits, positions = inputs(203)
    options = SampleRows.of(SEEDS, [100.0] * 5, [top_p] * 5, [top_k] * 5, [0, 0.5, 0, 1, 0.01])
    ours = sample.kernel(logits, positions, options).tokens
    assert ours.tolist() == sample.reference(logits, positions, options).tokens.tolist()


@pytest.mark.parametrize("top_k", [0, 1, 4])
@pytest.mark.parametrize("threshold", [0.0, 0.004, 0.03])
def test_the_kernel_excludes_what_the_reference_does(
    gpu: Any, threshold: float, top_k: int
) -> None:
    """Half of the positions by their coins; also how many min-p leaves."""
    logits, positions = inputs(203)
    more = [
        MoreFilters(1, 0.5, threshold, (3, 200)),
        MoreFilters(1, 1.0, threshold, tuple(range(0, 203, 2))),
        MoreFilters(9),
        MoreFilters(),
        MoreFilters(7, 0.5, threshold),
    ]
    top_p, min_p = [1, 0.5, 0.9, 1, 0.9], [0, 0, 0.6, 0.6, 0.6]
    options = SampleRows.of(SEEDS, [100.0] * 5, top_p, [top_k] * 5, min_p, more)
    ours = sample.kernel(logits, positions, options).tokens
    assert ours.tolist() == sample.reference(logits, positions, options).tokens.tolist()


def test_bias_mask_and_probabilities(gpu: Any) -> None:
    logits, positions = inputs(75)
    allowed = np.random.default_rng(3).random((5, PLACES, 75)) < 0.2
    arguments: dict[str, Any] = {
        "bias": normal(5, 1, 75, seed=3),
        "mask": mask_of(allowed),
        "logprobs": True,
    }
    ours = sample.kernel(logits, positions, MIXED, **arguments)
    for one, other in zip(
        ours, sample.reference(logits, positions, MIXED, **arguments), strict=True
    ):
        assert np.array_equal(np.array(one), np.array(other))


# --- the reference ----------------------------------------------------------------------------


def slow(values: mx.array, positions: mx.array, rows: SampleRows) -> list[list[int]]:
    """Every token evaluated, of [B, N, V]."""
    vocabulary = values.shape[-1]
    tokens = np.array(mx.argmax(values, axis=-1))
    for group in rows.groups:
        noise = gumbel_noise(group.seeds, positions[group.index], vocabulary)
        own = values[group.index].astype(mx.float32)
        top = own.max(axis=-1, keepdims=True)
        scores = np.array((own - top) * group.inverse_temperature[:, None, None] + noise)
        if group.filters:
            scores[~kept(own, group)] = -np.inf
        tokens[list(group.rows)] = scores.argmax(-1)
    return tokens.tolist()


def kept(values: mx.array, group: Any) -> np.ndarray:
    """Which tokens of [b, N, V] the reference's cuts keep."""
    rows, places, vocabulary = values.shape
    wide = mx.pad(values, [(0, 0), (0, 0), (0, -vocabulary % 16)], constant_values=-mx.inf)
    flat = wide.reshape(rows * places, -1)
    keys = ranks_of(flat.max(axis=1, keepdims=True) - flat)
    drop = np.array(dropped(keys, group.spread(places))).astype(bool)
    return ~drop.reshape(rows, places, -1)[..., :vocabulary]


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("vocabulary", [2048, 20_001, 20_032])
def test_looking_twice_misses_no_winner(vocabulary: int, scale: float) -> None:
    """Stops a first look that is not a bound, columns mixed up, and too few candidates."""
    rows, places = 3, 60
    logits = scale * normal(rows, places, vocabulary)
    options = SampleRows.of((3, 4, 5), (0.7, 1.0, 1.5), (1, 1, 0.9), (0, 0, 0))
    positions = mx.arange(rows * places).reshape(rows, places)
    tokens = sample.reference(logits, positions, options).tokens
    assert tokens.tolist() == slow(logits, positions, options)


def test_a_few_tokens_that_share_all_the_mass() -> None:
    """Stops what the argument of the docstring excludes: many large noises, a small winner."""
    logits = np.full((1, 400, 4000), -3.0, np.float32)
    logits[..., ::97] = 6.0
    positions = mx.arange(400)[None]
    options = SampleRows.of((11,), (1.0,))
    tokens = sample.reference(mx.array(logits), positions, options).tokens.tolist()
    assert tokens == slow(mx.array(logits), positions, options)
    assert any(token % 97 for token in tokens[0])


def exactly_kept(logits: np.ndarray, top_p: float, top_k: int, min_p: float) -> set[int] | None:
    """By sorting, in float64; None where rounding decides."""
    wide = logits.astype(np.float64)
    chances = np.exp(wide - wide.max())
    total, mass, result = chances.sum(), 0.0, set()
    for rank, token in enumerate(np.argsort(-wide, kind="stable")):
        if top_p < 1 and abs(mass / total - top_p) < 4e-4:
            return None
        if (top_p < 1 and mass / total >= top_p) or (top_k and rank >= top_k):
            break
        if abs(chances[token] - min_p) < 1e-5 * min_p < 1e-5:
            return None
        if chances[token] < min_p:
            break
        result.add(int(token))
        mass += chances[token]
    return result


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_cuts_are_those_of_a_sorted_row(data: st.DataObject) -> None:
    """Stops an off-by-one anywhere in the bisection; ties at every level go by id."""
    vocabulary = data.draw(st.sampled_from([1, 16, 37, 64, 1000]))
    top_p = data.draw(st.sampled_from([1.0, 0.01, 0.3, 0.5, 0.9, 0.999]))
    top_k = data.draw(st.sampled_from([0, 1, 2, 9, 64, 10**6]))
    min_p = data.draw(st.sampled_from([0.0, 0.004, 0.3, 1.0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(0, data.draw(st.sampled_from([0.0, 0.3, 2.0, 9.0])), (2, 1, vocabulary))
    logits = np.round(logits, data.draw(st.sampled_from([0, 1, 7]))).astype(np.float32)
    rows = SampleRows.of((1, 2), (1.0, 1.0), (top_p, 0.7), (top_k, 5), (min_p, 0.0))
    for group in rows.groups:
        if not group.filters:
            continue
        ours = kept(mx.array(logits)[group.index], group)
        for row, flags in zip(group.rows, ours, strict=True):
            options = (top_p, top_k, min_p) if row == 0 else (0.7, 5, 0.0)
            expected = exactly_kept(logits[row, 0], *options)
            assert expected is None or set(np.flatnonzero(flags[0])) == expected


@pytest.mark.parametrize("kind", ["normal", "tied", "two lumps", "one token"])
@pytest.mark.parametrize("vocabulary", [2**14, 20_001, 70_000])
def test_counting_and_bisection_cut_at_one_token(
    vocabulary: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, so that a seed's text does not depend on which of them is taken."""
    rng = np.random.default_rng(vocabulary)
    logits = rng.normal(0, 3, (6, vocabulary)).astype(np.float32)
    if kind == "tied":  # thousands at the cut
        logits = np.round(logits / 2)
    elif kind == "two lumps":
        logits[:, ::3] -= 30
    elif kind == "one token":
        logits[:, 77] += 60
    top_p, top_k = (0.9, 0.35, 0.9999, 1.0, 0.6, 1.0), (0, 5, 900, 3000, 0, vocabulary - 1)
    options = SampleRows.of(range(6), [1.0] * 6, top_p, top_k).groups[0].spread(1)
    wide = mx.pad(mx.array(logits), [(0, 0), (0, -vocabulary % 16)], constant_values=-mx.inf)
    keys = ranks_of(wide.max(axis=1, keepdims=True) - wide)
    drops = []
    for counted in (0, 2**20):
        monkeypatch.setattr(sample_cuts, "COUNTED", counted)
        drops.append(np.array(dropped(keys, options)))
    assert np.array_equal(*drops)
    assert 0 < drops[0].sum() < drops[0].size


@pytest.mark.parametrize("filters", [{}, {"top_p": [0.9]}, {"top_k": [50]}, {"min_p": [0.05]}])
def test_a_row_is_sampled_in_twice_the_bytes_of_its_logits(filters: dict[str, Any]) -> None:
    """One row of five positions at 151,936 tokens: what is alive beside the logits."""
    logits, positions = normal(1, 5, 151_936) * 3, mx.arange(5)[None]
    rows = SampleRows.of((7,), (0.8,), **filters)
    mx.eval(logits, sample.reference(logits, positions, rows).tokens)  # tables, which stay
    mx.clear_cache()
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(sample.reference(logits, positions, rows).tokens)
    assert mx.get_peak_memory() - before <= 2 * logits.nbytes


@pytest.mark.parametrize("vocabulary", [2**14 - 1, 2**14, 151_936])
@pytest.mark.parametrize("counted", [0, 2**20])
def test_cuts_of_a_large_vocabulary(
    vocabulary: int, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops sums that overflow; by counting and by bisection, whichever is taken there."""
    monkeypatch.setattr(sample_cuts, "COUNTED", counted)
    logits = np.random.default_rng(5).normal(0, 2.5, (4, 1, vocabulary)).astype(np.float32)
    top_p, top_k = (0.9, 0.35, 0.99, 1.0), (0, 0, 900, 3000)
    rows = SampleRows.of((1, 2, 3, 4), [1.0] * 4, top_p, top_k)
    ours = kept(mx.array(logits), rows.groups[0])
    for row, flags in enumerate(ours):
        wanted = _nucleus(logits[row, 0], top_p[row], top_k[row])
        assert abs(int(flags.sum()) - wanted) <= 1 + 4e-4 * wanted
        if top_p[row] == 1:
            assert int(flags.sum()) == wanted


def _nucleus(logits: np.ndarray, top_p: float, top_k: int) -> int:
    """How many tokens are kept, in float64."""
    chances = np.sort(np.exp(logits.astype(np.float64) - logits.max()))[::-1]
    mass = np.cumsum(chances) / chances.sum()
    many = int((mass < top_p).sum()) + 1 if top_p < 1 else len(logits)
    return min(many, top_k or many)


def test_top_k_of_one_is_greedy_among_ties() -> None:
    """Stops a filter that keeps all that equal the last one."""
    logits, positions = inputs(501)
    for filters in ({"top_k": [1] * 5}, {"top_p": [1e-6] * 5}):
        options = SampleRows.of(SEEDS, [3.0] * 5, **filters)
        tokens = sample.reference(logits, positions, options).tokens
        assert tokens.tolist() == mx.argmax(logits, axis=-1).tolist()
    assert (np.array(logits == logits.max(axis=-1, keepdims=True)).sum(-1) > 1).any()


def test_nearly_equal_logits_are_ranked() -> None:
    """Stops ranks by a rounded probability where top-k must see the difference of one ulp."""
    logits = mx.array([[[20.0, 20.000002, 19.999998, 20.000002, 3.0]]])
    for count, best in ((1, {1}), (2, {1, 3}), (3, {1, 3, 0}), (4, {1, 3, 0, 2})):
        options = SampleRows.of((5,), (100.0,), top_k=[count])
        many = mx.broadcast_to(logits, (1, 200, 5))
        tokens = sample.reference(many, mx.arange(200)[None], options).tokens
        assert set(np.array(tokens)[0].tolist()) == best


def test_a_mask_allows_and_forbids() -> None:
    """Also the greedy row; a filter sees what the mask leaves."""
    logits, _ = inputs(75)
    logits = mx.repeat(logits[:, :1], 300, axis=1)
    positions = mx.broadcast_to(mx.arange(300), (5, 300))
    allowed = np.zeros((5, 300, 75), bool)
    allowed[..., [3, 40, 74]] = True
    hot = SampleRows.of(SEEDS, (9, 9, 0, 9, 9), (1, 1, 1, 1, 1), (0, 2, 0, 0, 9))
    tokens = np.array(sample(logits, positions, hot, mask=mask_of(allowed)).tokens)
    order = [
        sorted((3, 40, 74), key=lambda t: (-values[t], t)) for values in np.array(logits[:, 0])
    ]
    for row, many in enumerate((3, 2, 1, 3, 3)):
        assert set(tokens[row]) == set(order[row][:many])


def test_probabilities_are_those_of_the_softmax() -> None:
    logits, positions = inputs(90, mx.float16)
    tokens, logprobs, confidence, _ = sample(logits, positions, MIXED, logprobs=True)
    assert logprobs is not None
    assert confidence is not None
    chances = np.array(mx.softmax(logits.astype(mx.float32), axis=-1))
    own = np.take_along_axis(chances, np.array(tokens)[..., None], axis=-1)[..., 0]
    assert np.allclose(np.exp(np.array(logprobs)), own, rtol=1e-5)
    assert np.allclose(np.array(confidence), chances.max(-1), rtol=1e-5)
    assert sample(logits, positions, MIXED).logprobs is None


@pytest.mark.parametrize("fill", [math.nan, -math.inf])
def test_useless_logits_give_some_token(fill: float) -> None:
    """Stops a token outside the vocabulary; what such rows mean is for others to say."""
    logits = mx.full((5, PLACES, 77), fill)
    tokens = np.array(sample(logits, inputs(77)[1], MIXED).tokens)
    assert ((tokens >= 0) & (tokens < 77)).all()


def test_rows_are_handled_alike_in_any_company() -> None:
    """Stops a sample that depends on who else is there, or on the row."""
    logits, positions = inputs(300)
    together = sample(logits, positions, MIXED).tokens.tolist()
    options = ((0.8, 1, 0, 0), (1.2, 0.9, 0, 0.01), (0, 0.5, 0, 0), (1, 0.8, 20, 0), (5, 1, 3, 0))
    for row, option in enumerate(options):
        alone = SampleRows.of(SEEDS[row : row + 1], *([value] for value in option))
        one = sample(logits[row : row + 1], positions[row : row + 1], alone)
        assert one.tokens.tolist() == together[row : row + 1]


ONE = SampleRows.of((1,), (1.0,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, p: sample(x[0], p, ONE), r"sample\] logits has shape \(1, 40\)"),
        (lambda x, p: sample(x, p, MIXED), r"sample\] options of 5 rows, logits of 1"),
        (lambda x, p: sample(x, p[0], ONE), r"positions are mlx.core.int32 of shape \(1,\)"),
        (lambda x, p: sample(x, p * 1.0, ONE), r"positions are mlx.core.float32"),
        (lambda x, p: sample(x[..., :0], p, ONE), r"sample\] 0 tokens, expected 1"),
        (lambda x, p: sample(x, p, ONE, mask=p), r"mask is mlx.core.int32 of shape \(1, 1\)"),
        (lambda x, p: sample(x, p, ONE, bias=x[..., :7]), r"bias has shape \(1, 1, 7\)"),
        (lambda x, p: SampleRows.of((1, 2), (1.0,)), r"1 of temperature for 2 seeds"),
        (lambda x, p: SampleRows.of((2**64,), (1.0,)), r"seeds=18446744073709551616 in row 0"),
        (lambda x, p: SampleRows.of((1,), (math.nan,)), r"temperature=nan in row 0"),
        (lambda x, p: SampleRows.of((1,), (1.0,), min_p=(2,)), r"min_p=2 in row 0, expected 0..1"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(mx.ones((1, 1, 40)), mx.array([[3]]))
