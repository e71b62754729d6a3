"""``count_accepted`` against a slow loop, for every shape that a step can ask for."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlx_spec.decoding.acceptance import count_accepted


def slow_count(draft: list[int], samples: list[int], length: int) -> int:
    """Draft tokens of one row before the first that is not the target's own sample."""
    run = 0
    while run < length and draft[run] == samples[run]:
        run += 1
    return run


@st.composite
def steps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Rows that agree often, on and on after a mismatch too; and a draft length of each."""
    rows, width = draw(st.integers(1, 7)), draw(st.integers(0, 6))
    token = st.integers(0, 2)
    samples = [draw(st.lists(token, min_size=width + 1, max_size=width + 1)) for _ in range(rows)]
    draft = [
        [(s + draw(st.sampled_from([0, 0, 0, 1]))) % 3 for s in row[:width]] for row in samples
    ]
    lengths = [draw(st.integers(0, width)) for _ in range(rows)]
    return np.array(draft, np.int32).reshape(rows, width), np.array(samples, np.int32), lengths


@given(step=steps())
@example(step=(np.zeros((3, 0), np.int32), np.zeros((3, 1), np.int32), [0, 0, 0]))
@example(step=(np.zeros((2, 4), np.int32), np.zeros((2, 5), np.int32), [0, 4]))
def test_as_a_slow_loop_says(step: tuple[np.ndarray, np.ndarray, list[int]]) -> None:
    """Stops a token kept after a mismatch, a row that counts another's run, a run past a row's
    own length, and shapes that break at K = 0.
    """
    draft, samples, lengths = step
    rows, width = draft.shape
    every = count_accepted(mx.array(draft), mx.array(samples), None)
    own = count_accepted(mx.array(draft), mx.array(samples), mx.array(lengths, mx.int32))
    assert every.shape == own.shape == (rows,)
    assert every.dtype == own.dtype == mx.int32
    pairs = list(zip(draft.tolist(), samples.tolist(), strict=True))
    assert every.tolist() == [slow_count(d, s, width) for d, s in pairs]
    assert own.tolist() == [slow_count(d, s, n) for (d, s), n in zip(pairs, lengths, strict=True)]


@pytest.mark.parametrize("lengths", [None, [3, 3]])
def test_the_bonus_sample_is_never_compared(lengths: list[int] | None) -> None:
    """Stops a count of K + 1 where the draft's last token equals the bonus token too."""
    draft, samples = mx.full((2, 3), 5, mx.int32), mx.full((2, 4), 5, mx.int32)
    given_lengths = None if lengths is None else mx.array(lengths, mx.int32)
    assert count_accepted(draft, samples, given_lengths).tolist() == [3, 3]
