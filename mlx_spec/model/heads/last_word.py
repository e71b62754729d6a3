"""What a model does to logits behind its output head: a scale, a soft cap, mostly nothing.

A draft head has the target's output head and not what follows, so that its guesses would be drawn
from another distribution than the target's wherever they are drawn: the largest logit stays, the
others do not. No family is known by name: the model is described with given numbers in the place
of what its head says, and what becomes of them is looked at::

    tokens - embedding - layers - head  ...                      described, never computed
                                        given - (x / c).tanh * c - logits
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_spec.model.hidden import HiddenLayers, described, noting

# Logits that are tried: so small that no cap is felt, and so large that every one is.
_SMALLEST, _LARGEST = 1e-2, 1e5
_ALIKE = 1e-3  # of what is expected


@dataclass(frozen=True)
class LastWord:
    """A scale, and a cap that is approached by tanh.

    Attributes:
        scale: of small logits.
        cap: of large ones; None: they may grow.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits as the model says them, of those of its head."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else mx.tanh(logits / self.cap) * self.cap


def last_word(model: Any, vocabulary: int) -> LastWord | None:
    """What a model with noted modules (``hidden.bind_hidden``) does to so many logits.

    Returns:
        None where that is nothing, or no scale and no cap.
    """
    given = np.geomspace(_SMALLEST, _LARGEST, vocabulary).astype(np.float32)
    given[1::2] *= -1
    with noting(HiddenLayers()) as notes:
        notes.instead = mx.array(given)[None, None]
        logits = described(model)
        if logits is notes.instead or logits.shape != notes.instead.shape:
            return None
    became = np.array(logits.astype(mx.float32)).reshape(-1)
    said = np.isfinite(became)  # some forbid tokens that mean nothing
    given, became = given[said], became[said]
    if not len(given):
        return None
    scale = _round(became[0] / given[0])
    for found in (LastWord(scale), LastWord(scale, _round(np.abs(became).max()))):
        expected = np.array(found(mx.array(given)))
        if np.allclose(became, expected, rtol=_ALIKE, atol=0):
            return None if found == LastWord() else found
    return None


def _round(number: float) -> float:
    """As it was written, most likely: six digits."""
    return float(f"{number:.6g}")
