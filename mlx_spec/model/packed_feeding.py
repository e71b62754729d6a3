"""Prompts of different lengths that are read together, without the holes of their rectangle.

Padded to the longest, sixteen short texts are a quarter or more of nothing. Models whose passes can
be packed (``ModelRunner.packs``) read the tokens that there are, as many a pass as one may take::

    a b c d           begins at 0    a b | c d     passes of 6 tokens at most: columns
    e f g                            e f | g       that bring as many, of rows that have
    h                                h   |         some left
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq

import mlx.core as mx

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.model.runner import ModelRunner, Rows, pass_size


def feed_packed(
    runner: ModelRunner, prompts: Seq[Seq[int]], begin: int, first: int, step_size: int
) -> None:
    """Write the K/V of prompts from position ``begin`` on, and wait for it.

    Args:
        runner: the model; it packs.
        prompts: token ids of rows from slot ``first`` on, in ascending order of their lengths.
        begin: what their slots hold already.
        first: the first row's slot.
        step_size: most tokens of one pass.
    """
    for rows in _passes(prompts, begin, first, pass_size(step_size)):
        runner.begin(rows)
        runner.proceed()


def _passes(prompts: Seq[Seq[int]], begin: int, first: int, most: int) -> Iterator[Rows]:
    longest = len(prompts[-1])
    while begin < longest:
        left = [prompt for prompt in prompts if len(prompt) > begin]
        end = _end(left, begin, most)
        parts = [list(prompt[begin:end]) for prompt in left]
        counts = [len(part) for part in parts]
        padded = [part + [0] * (end - begin - len(part)) for part in parts]
        yield Rows(
            mx.array(padded, mx.int32),
            mx.full(len(left), begin, mx.int32),
            end,
            first + len(prompts) - len(left),
            uniform=True,
            counts=mx.array(counts, mx.int32),
            packing=TokenPacking.of(counts, sum(counts)),
        )
        begin = end


def _end(prompts: Seq[Seq[int]], begin: int, most: int) -> int:
    """How far one pass goes: at least one token of each."""
    end, tokens = begin, 0
    for end in range(begin + 1, len(prompts[-1]) + 1):
        tokens += sum(len(prompt) >= end for prompt in prompts)
        if tokens > most:
            return max(end - 1, begin + 1)
    return end
