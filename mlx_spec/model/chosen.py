"""Whether a model gives logits of chosen tokens of a pass: the others' are never computed.

The output head of a small model is a fifth of all its weights, and of a prompt one token's logits
are read. So while such a pass is described, the head is shown the states of the chosen tokens alone
(``hidden``). What the model does to logits behind its head, it then does to these; a model that
takes states for logits of its own shape there shows that when it is described.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.cache.layout import own_caches
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.hidden import HiddenLayers, bind_hidden, noting
from mlx_spec.model.passes.form import WHOLE
from mlx_spec.model.support import Support


def chooses(model: Any, support: Support) -> bool:
    """The verdict; the head of a model that does is bound from then on.

    Args:
        model: one that ``support`` does not refuse.
        support: the verdict on that; of a pass in several calls tokens have no one order, and of
            what is no module nobody knows what it does to logits.
    """
    if not isinstance(model, nn.Module) or support.form != WHOLE:
        return False
    try:
        bind_hidden(model, HiddenLayers())
        with noting(HiddenLayers()) as notes:
            notes.chosen = mx.array([2, 0], mx.int32)
            logits = model(mx.zeros((1, 3), mx.int32), cache=own_caches(model))
    except UnsupportedModel:
        return False
    except Exception:  # whatever the code of a model raises
        return False
    return bool(logits.shape == (2, 1, support.vocabulary))
