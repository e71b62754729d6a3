"""``describe_pass``: a pass over any tokens, of no row and without caches, to be timed."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_spec.model.passes.form import PassForm

_STRIDE = 7919  # between tokens: a model with experts reads others for each


def any_tokens(count: int, width: int, vocabulary: int) -> mx.array:
    """[count // width, width] int32 token ids that differ."""
    ids = (mx.arange(count, dtype=mx.int32) * _STRIDE + 1) % vocabulary
    return ids.reshape(-1, width)


def describe_pass(
    model: Any, form: PassForm, vocabulary: int, tokens: int, width: int = 1
) -> list[mx.array]:
    """Logits of ``tokens`` tokens, ``width`` of them a row, in the calls that the form asks for."""
    ids = any_tokens(tokens, width, vocabulary)
    calls = [ids[row : row + 1] for row in range(len(ids))] if form.rows_apart else [ids]
    if form.tokens_apart:
        calls = [call[:, at : at + 1] for call in calls for at in range(width)]
    elif form.tokens_as_rows:
        calls = [call.reshape(-1, 1) for call in calls]
    return [model(call, cache=None) for call in calls]
