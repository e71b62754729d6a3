"""Guesses that were made on the host, as a draft."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TypeAlias

import mlx.core as mx
import numpy as np

from mlx_spec.decoding.drafters.base import Draft

Guess: TypeAlias = tuple[int, float]
"""A token, and the chance that it is right if those before it are."""


def host_draft(guesses: Seq[Seq[Guess]]) -> Draft:
    """A draft as wide as the longest row of guesses."""
    lengths = [len(row) for row in guesses]
    tokens = np.zeros((len(guesses), max(lengths)), np.int32)
    for row, made in enumerate(guesses):
        tokens[row, : len(made)] = [token for token, _ in made]
    chances = [[chance for _, chance in row] for row in guesses]
    return Draft(mx.array(tokens), lengths=lengths, chances=chances)
