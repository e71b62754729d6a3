"""Which tokens a prompt cache of mlx-lm's is of: its files do not say.

The first layer tells: of what is not rotated there, a token's values follow from the token alone,
so that those of the whole vocabulary, computed once, say which token each position is::

    values of the file, position p   [ . . . . ]  nearest of   token 0    [ . . . . ]
                                                               token 1    [ . . . . ]  ...

Where the nearest is not near, the file is another model's, or the model's first layer knows
positions; both are refused.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any, cast

import mlx.core as mx

from mlx_spec.cache.layout import own_caches, own_leaves
from mlx_spec.errors import InvalidRequest

# Most of a vector's length that rounding, to 16 bits, may put it off by.
_NEAR = 0.05
_ROWS = 8192  # of the vocabulary, at once


def tell_tokens(values: mx.array, place: int, model: Any, where: str) -> list[int]:
    """The tokens that values of a first layer are of.

    Args:
        values: [1, H, N, D] of the tokens from the first on.
        place: of the model's caches, lists taken apart: whose they are.
        model: whose file it is.
        where: begins the error.

    Raises:
        InvalidRequest: some are no token's.
    """
    wanted = _flat(values)
    best = mx.full((len(wanted),), mx.inf)
    tokens = mx.zeros((len(wanted),), mx.int32)
    nearest = mx.zeros_like(wanted)
    for begin in range(0, size := model_vocabulary(model), _ROWS):
        ids = mx.arange(begin, min(size, begin + _ROWS))
        own = _values(model, place, ids)
        apart = (own * own).sum(axis=1) - 2 * (wanted @ own.T)  # but for what is alike for all
        at, least = mx.argmin(apart, axis=1), apart.min(axis=1)
        better = least < best
        best = mx.where(better, least, best)
        tokens = mx.where(better, ids[at], tokens)
        nearest = mx.where(better[:, None], own[at], nearest)
        mx.eval(best, tokens, nearest)
    good = _near(nearest, wanted)
    if not good.all().item():
        bad = sum(not one for one in cast("list[bool]", good.tolist()))
        raise InvalidRequest(
            f"{where} does not say its tokens, and {bad} of {len(wanted)} cannot be told from its "
            "first layer: it is another model's, or make it again with `mlx-spec cache-prompt`"
        )
    return cast("list[int]", tokens.tolist())


def check_tokens(tokens: Seq[int], values: mx.array, place: int, model: Any, refused: str) -> None:
    """Refuse values that are not those of the model's first tokens; else as ``tell_tokens``."""
    count = min(len(tokens), 64)
    own = _values(model, place, mx.array(list(tokens[:count])))
    if not _near(own, _flat(values[:, :, :count])).all().item():
        raise InvalidRequest(f"{refused}: its keys and values are other ones")


def _values(model: Any, place: int, tokens: mx.array) -> mx.array:
    """[n, H * D]: what one cache is given as values of lone tokens [n]."""
    caches = own_caches(model)
    cache = own_leaves(caches)[place]
    given: list[mx.array] = []
    right = cache.update_and_fetch

    def update_and_fetch(keys: mx.array, values: mx.array) -> Any:
        given.append(values)
        return right(keys, values)

    cache.update_and_fetch = update_and_fetch
    model(tokens[:, None], cache=caches)  # what nobody looks at is never computed
    return _flat(given[0].transpose(2, 1, 0, 3))


def _flat(values: mx.array) -> mx.array:
    """[1, H, N, D] as [N, H * D] in float32."""
    return values[0].transpose(1, 0, 2).reshape(values.shape[2], -1).astype(mx.float32)


def _near(one: mx.array, other: mx.array) -> mx.array:
    """[N] whether vectors are the same but for rounding."""
    apart = mx.linalg.norm(one - other, axis=1)
    return apart <= _NEAR * mx.maximum(mx.linalg.norm(other, axis=1), 1e-6)


def model_vocabulary(model: Any) -> int:
    """How many tokens the model has."""
    from mlx_spec.model.support import examine

    return examine(model).vocabulary
