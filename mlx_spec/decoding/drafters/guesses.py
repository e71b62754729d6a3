"""Guesses that were made on the host, as a draft."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TypeAlias

import mlx.core as mx
import numpy as np

from mlx_spec.decoding.drafters.base import Draft
from mlx_spec.sequence import Sequence

Guess: TypeAlias = tuple[int, float]
"""A token, and the chance that it is right if those before it are."""


def host_draft(rows: Seq[Sequence], guesses: Seq[Seq[Guess]]) -> Draft:
    """A draft as wide as the longest row of guesses.

    Those of a row with a constraint end where that forbids them, which is known here.
    """
    guesses = [_allowed(row, own) for row, own in zip(rows, guesses, strict=True)]
    lengths = [len(row) for row in guesses]
    tokens = np.zeros((len(guesses), max(lengths)), np.int32)
    for place, made in enumerate(guesses):
        tokens[place, : len(made)] = [token for token, _ in made]
    chances = [[chance for _, chance in row] for row in guesses]
    return Draft(mx.array(tokens), lengths=lengths, chances=chances)


def _allowed(row: Sequence, guesses: Seq[Guess]) -> Seq[Guess]:
    if row.guide is None or not guesses:
        return guesses
    row.guide.follow(row.tokens)
    return guesses[: row.guide.allowed([token for token, _ in guesses])]
