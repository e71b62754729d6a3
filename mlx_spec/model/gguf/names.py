"""Which tensor of a GGUF file holds a parameter of mlx-lm's class, and in which order its rows lie.

The names are the ``gguf`` package's: it knows what converters of models call each tensor, and
mlx-lm's classes keep those names.
"""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np

_SUFFIXES = (".weight", ".bias")
# mlx-lm keeps all experts of a layer in one parameter, as GGUF does.
_EXPERTS = re.compile(r"model\.layers\.(\d+)\..*\bswitch_mlp\.(gate|up|down)_proj(\.weight|\.bias)")
_QUERY_OR_KEY = re.compile(r".*\.attn_([qk])\.(weight|bias)")


class TensorNames:
    """Names of tensors by names of parameters.

    Args:
        architecture: GGUF's name of it.
        layers: of the model.
    """

    def __init__(self, architecture: str, layers: int) -> None:
        known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
        self._map = gguf.get_tensor_name_map(known[architecture], layers)

    def of(self, parameter: str) -> str | None:
        """The tensor of a parameter (``"model.layers.0.mlp.up_proj.weight"``), None if none is."""
        if experts := _EXPERTS.fullmatch(parameter):
            layer, which, suffix = experts.groups()
            return f"blk.{layer}.ffn_{which}_exps{suffix}"
        name = self._map.get_name(parameter, _SUFFIXES)
        bare = name is not None and not parameter.endswith(_SUFFIXES)
        return f"{name}.weight" if bare else name


def row_order(tensor: str, config: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """Rows of queries and keys that lie interleaved, in the order that mlx-lm's class wants.

    ::

        in the file, one head of 8:   0 4 1 5 2 6 3 7     numbers 0 and 4 are turned together
        in the class:                 0 1 2 3 4 5 6 7

    Returns:
        Indices of rows of the file; None where the order is the same.
    """
    match = _QUERY_OR_KEY.fullmatch(tensor)
    if match is None:
        return None
    heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
    rows = np.arange(heads * config["head_dim"]).reshape(heads, -1, 2)
    order: np.ndarray[Any, Any] = rows.swapaxes(1, 2).ravel()
    return order
