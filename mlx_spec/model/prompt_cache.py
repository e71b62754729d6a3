"""Prompt caches as files, in mlx-lm's format: a text that was read once, for other processes.

``mlx_lm.cache_prompt`` and ``mlx-spec cache-prompt`` write such files, and both sides read both.
mlx-lm's do not say which tokens they are of. The first layer tells: of what is not rotated there, a
token's values follow from the token alone, so that those of the whole vocabulary, computed once,
say which token each position is::

    values of the file, position p   [ . . . . ]  nearest of   token 0    [ . . . . ]
                                                               token 1    [ . . . . ]  ...

Where the nearest is not near, the file is another model's, or the model's first layer knows
positions; both are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from mlx_spec.cache.given import KeysAndValues
from mlx_spec.cache.layout import full_attention_cache
from mlx_spec.errors import InvalidRequest, OutputError

# Most of a vector's length that rounding, to 16 bits, may put it off by.
_NEAR = 0.05
_ROWS = 8192  # of the vocabulary, at once
_TOKENS = "mlx_spec_tokens"


@dataclass(frozen=True)
class PromptCache:
    """A text that was read.

    Attributes:
        tokens: of the text.
        layers: keys and values of each layer.
        model: the name under which the model was loaded.
    """

    tokens: list[int]
    layers: list[KeysAndValues]
    model: str

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return sum(array.nbytes for pair in self.layers for array in pair)


def write_prompt_cache(path: Path, cache: PromptCache) -> None:
    """Write a file that mlx-lm reads too, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    caches = []
    for keys_and_values in cache.layers:
        own = full_attention_cache()
        own.update_and_fetch(*keys_and_values)
        caches.append(own)
    notes = {"model": cache.model, _TOKENS: json.dumps(cache.tokens), "tokenizer_config": "{}"}
    path = path.expanduser()
    part = path.with_name(f".{path.name}.part.safetensors")
    try:
        save_prompt_cache(str(part), caches, notes)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"[cache-prompt] {path}: {' '.join(str(error).split())}") from error
    finally:
        part.unlink(missing_ok=True)


def read_prompt_cache(path: Path, model: Any, name: str) -> PromptCache:
    """Read a file for a model; keys and values come out in the model's own type.

    Args:
        path: the file.
        model: as ``load`` returned it.
        name: of the model, for errors.

    Raises:
        InvalidRequest: it is no such file, or another model's, or of caches that are not of plain
            full attention.
    """
    where = f"[prompt cache] {path}"
    try:
        caches, notes = load_prompt_cache(str(path.expanduser()), return_metadata=True)
    except Exception as error:  # whatever mlx and mlx-lm raise over a foreign file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        words = " ".join(str(reason).split())[:200] or type(error).__name__
        raise InvalidRequest(f"{where} is no prompt cache: {words}") from error
    notes = notes if isinstance(notes, dict) else {}
    plain = type(full_attention_cache())
    if strange := sorted({type(own).__name__ for own in caches if type(own) is not plain}):
        raise InvalidRequest(
            f"{where} keeps {', '.join(strange)}; only {plain.__name__} can be taken over"
        )
    # What its state is depends on mlx-lm's version; keys and values come first in all of them.
    layers = [tuple(part[:, :, : own.offset] for part in own.state[:2]) for own in caches]
    made_for = str(notes.get("model") or "another model")
    first = _fitting(layers, model, f"{where} was made for {made_for}, not for {name}")
    keys, values = first
    layers = [(k.astype(keys.dtype), v.astype(values.dtype)) for k, v in layers]
    tokens = _noted(notes)
    if tokens is None or len(tokens) != layers[0][1].shape[2]:
        tokens = _told(layers[0][1], model, f"{where} (of {made_for})")
    else:
        _check(tokens, layers[0][1], model, f"{where} was made for {made_for}, not for {name}")
    return PromptCache(tokens, layers, made_for)


def _noted(notes: dict[str, Any]) -> list[int] | None:
    """The tokens that a file of ours names."""
    try:
        tokens = json.loads(notes[_TOKENS])
        return [int(token) for token in tokens]
    except (KeyError, ValueError, TypeError):
        return None


class _First(type(full_attention_cache())):  # type: ignore[misc]
    """A layer's cache that keeps what it is given for a moment; nothing is written anywhere."""

    given: KeysAndValues | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysAndValues:
        self.given = keys, values
        return keys, values


def _first_layer(model: Any, tokens: mx.array) -> list[KeysAndValues]:
    """Keys and values of lone tokens [n], of each layer; computed only where they are looked at."""
    caches = [_First() for _ in model.layers]
    model(tokens[:, None], cache=caches)
    found = [own.given for own in caches]
    return [pair for pair in found if pair is not None]


def _fitting(layers: Seq[Any], model: Any, refused: str) -> KeysAndValues:
    """What the model's first layer keeps of a token; refuse keys and values of other shapes."""
    own = _first_layer(model, mx.array([0]))
    if len(own) != len(layers) or any(not pair or len(pair) != 2 for pair in layers):
        raise InvalidRequest(f"{refused}: {len(layers)} layers in it, {len(own)} in the model")
    for mine, theirs in zip(own, layers, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            wanted, found = (one.shape[1], one.shape[3]), (other.shape[1], other.shape[3])
            if wanted != found:
                raise InvalidRequest(f"{refused}: {found} heads and sizes in it, {wanted} here")
    return own[0]


def _check(tokens: list[int], values: mx.array, model: Any, refused: str) -> None:
    """Refuse values that are not those of the model's first tokens."""
    count = min(len(tokens), 64)
    size = model_vocabulary(model)
    if max(tokens) >= size or min(tokens) < 0:
        raise InvalidRequest(f"{refused}: it has the token {max(tokens)} of {size}")
    own = _flat(_first_layer(model, mx.array(tokens[:count]))[0][1].transpose(2, 1, 0, 3))
    if not _near(own, _flat(values[:, :, :count])).all().item():
        raise InvalidRequest(f"{refused}: its keys and values are other ones")


def _told(values: mx.array, model: Any, where: str) -> list[int]:
    """The tokens that the first layer's values [1, H, N, D] are of."""
    wanted = _flat(values)
    best = mx.full((len(wanted),), mx.inf)
    tokens = mx.zeros((len(wanted),), mx.int32)
    nearest = mx.zeros_like(wanted)
    for begin in range(0, size := model_vocabulary(model), _ROWS):
        ids = mx.arange(begin, min(size, begin + _ROWS))
        own = _flat(_first_layer(model, ids)[0][1].transpose(2, 1, 0, 3))
        apart = (own * own).sum(axis=1) - 2 * (wanted @ own.T)  # but for what is alike for all
        place, least = mx.argmin(apart, axis=1), apart.min(axis=1)
        better = least < best
        best = mx.where(better, least, best)
        tokens = mx.where(better, ids[place], tokens)
        nearest = mx.where(better[:, None], own[place], nearest)
        mx.eval(best, tokens, nearest)
    good = _near(nearest, wanted)
    if not good.all().item():
        bad = sum(not one for one in cast("list[bool]", good.tolist()))
        raise InvalidRequest(
            f"{where} does not say its tokens, and {bad} of {len(wanted)} cannot be told from its "
            "first layer: it is another model's, or make it again with `mlx-spec cache-prompt`"
        )
    return cast("list[int]", tokens.tolist())


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
