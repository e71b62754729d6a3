"""Which texts are trained on at which step: a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq

import numpy as np

# Texts that are sorted by length together, so that a batch has little padding.
_POOL = 64


def batches(lengths: Seq[int], tokens: int, seed: int, skipped: int) -> Iterator[list[int]]:
    """Indices of the texts of each step, for ever; epochs are permutations of all texts.

    Args:
        lengths: of the texts.
        tokens: of a batch, padding included, at most (a longer text is alone).
        seed: of the order.
        skipped: steps that are done.
    """
    epoch = 0
    while True:
        whole = _epoch(lengths, tokens, seed, epoch)
        yield from whole[skipped:]
        skipped, epoch = max(0, skipped - len(whole)), epoch + 1


def _epoch(lengths: Seq[int], tokens: int, seed: int, epoch: int) -> list[list[int]]:
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths)).tolist()
    found: list[list[int]] = []
    for start in range(0, len(order), _POOL):
        batch: list[int] = []
        for index in sorted(order[start : start + _POOL], key=lambda each: lengths[each]):
            if batch and (len(batch) + 1) * lengths[index] > tokens:
                found.append(batch)
                batch = []
            batch.append(index)
        found.append(batch)
    return [found[place] for place in random.permutation(len(found))]
