"""Prompt caches as files, in mlx-lm's format: a text that was read once, for other processes.

``mlx_lm.cache_prompt`` and ``mlx-spec cache-prompt`` write such files. What all layers keep is
there as mlx-lm's own caches (``cache.exchange``), so that mlx-lm reads ours, whatever the model
keeps. Ours say more, in notes that mlx-lm does not look at::

    tokens    what was read            weights   a mark of the model that read it
    format    2                        check     of all numbers: a byte that changed is found

mlx-lm's do not say their tokens, without which no request can be seen to begin with them: they are
told from the first layer's values (``told_tokens``), where that has those of all tokens.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from mlx_spec.cache.exchange import give, packing_of, take, tokens_in, window_of
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.layout import kind_of, own_caches, own_leaves
from mlx_spec.config import KEPT_TOKENS, PLAIN_CACHES, CacheOptions
from mlx_spec.errors import InvalidRequest, ModelLoadError, OutputError
from mlx_spec.model.files import tensor_names
from mlx_spec.model.told_tokens import check_tokens, model_vocabulary, tell_tokens

FORMAT = 2
_TOKENS, _FORMAT = "mlx_spec_tokens", "mlx_spec_format"
_WEIGHTS, _CHECK = "mlx_spec_weights", "mlx_spec_check"


@dataclass(frozen=True)
class PromptCache:
    """A text that was read.

    Attributes:
        tokens: of the text.
        state: what was saved of it, of each of the model's own caches, lists taken apart.
        model: the name under which the model was loaded.
        options: of the caches that it is for.
    """

    tokens: list[int]
    state: RowState
    model: str
    options: CacheOptions = PLAIN_CACHES

    @property
    def nbytes(self) -> int:
        """Bytes of all that was saved."""
        return self.state.nbytes


def write_prompt_cache(path: Path, cache: PromptCache, model: Any) -> None:
    """Write a file that mlx-lm reads too, whole or not at all.

    Raises:
        OutputError: it cannot be written.
        InvalidRequest: mlx-lm has no form for what some layer keeps.
    """
    caches = own_caches(model, _in_file(cache.options, len(cache.tokens)))
    parts = [part.parts[0] if part.parts else part for part in cache.state.parts]
    give(own_leaves(caches), parts, len(cache.tokens))
    notes = {
        "model": cache.model,
        "tokenizer_config": "{}",
        _TOKENS: json.dumps(cache.tokens),
        _FORMAT: str(FORMAT),
        _WEIGHTS: mark_of(model),
        _CHECK: _sum_of(parts),
    }
    path = path.expanduser()
    part = path.with_name(f".{path.name}.part.safetensors")
    try:
        save_prompt_cache(str(part), caches, notes)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"[cache-prompt] {path}: {' '.join(str(error).split())}") from error
    finally:
        part.unlink(missing_ok=True)


def read_prompt_cache(
    path: Path, model: Any, name: str, options: CacheOptions | None = None
) -> PromptCache:
    """Read a file for a model.

    Args:
        path: the file.
        model: as ``load`` returned it.
        name: of the model, for errors.
        options: of the caches that it is wanted for; None: those that it was made with.

    Raises:
        InvalidRequest: it is no such file, not whole, of a newer format, another model's or of the
            same with other numbers, or of other caches.
    """
    where = f"[prompt cache] {path}"
    caches, notes = _load(path.expanduser(), where)
    made_for = str(notes.get("model") or "another model")
    refused = f"{where} was made for {made_for}, not for {name}"
    leaves = own_leaves(caches)
    found = _options_of(leaves, own_leaves(own_caches(model)), refused)
    try:
        parts, count = take(leaves), tokens_in(leaves)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from error
    _check_shapes(parts, own_caches(model, found), model, refused)
    tokens = _noted(notes, model, where)
    if count is not None and tokens is not None and count != len(tokens):
        raise InvalidRequest(f"{where} is broken: {len(tokens)} tokens, {count} in its layers")
    if tokens is None or _WEIGHTS not in notes:
        tokens = _told(tokens, parts, leaves, model, (where, refused))
    elif notes[_WEIGHTS] != mark_of(model):
        raise InvalidRequest(
            f"{refused}: the model has other weights (or was loaded with other options)"
        )
    elif notes.get(_CHECK) != _sum_of(parts):
        raise InvalidRequest(f"{where} is broken: its numbers are not those that were written")
    options = _wanted(found if options is None else options, found, len(tokens), where)
    if options.late:
        plain = [kind_of(own) == "full" for own in leaves]
        both = zip(parts, plain, strict=True)
        parts = [RowState(parts=(part, RowState())) if late else part for part, late in both]
    return PromptCache(tokens, RowState(parts=tuple(parts)), made_for, options)


def _load(path: Path, where: str) -> tuple[list[Any], dict[str, Any]]:
    """mlx-lm's caches from a file, and what it notes."""
    try:
        tensor_names(path)  # whole?
        caches, notes = load_prompt_cache(str(path), return_metadata=True)
    except Exception as error:  # whatever mlx and mlx-lm raise over a foreign file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, ModelLoadError):
            reason = f"it {reason.removeprefix(f'{path.name} ')}"
        words = " ".join(str(reason).split())[:200] or type(error).__name__
        raise InvalidRequest(f"{where} is no prompt cache: {words}") from error
    notes = notes if isinstance(notes, dict) else {}
    version = str(notes.get(_FORMAT, 1))
    if not version.isdecimal() or int(version) > FORMAT:
        raise InvalidRequest(
            f"{where} is of format {version}, this mlx-spec reads up to {FORMAT}: a newer one "
            "has written it"
        )
    return caches, notes


def _in_file(options: CacheOptions, tokens: int) -> CacheOptions:
    """How such a text is kept in a file: all of it in numbers, or all of it packed.

    Raises:
        InvalidRequest: it would have to be both.
    """
    if not options.late:
        return options
    if tokens > options.quantized_kv_start:
        raise InvalidRequest(
            f"[cache-prompt] {tokens} tokens, and quantized_kv_start={options.quantized_kv_start}: "
            "a file holds a text in numbers or in few bits; give --quantized-kv-start 0, or a "
            "larger one"
        )
    return replace(options, kv_bits=None, quantized_kv_start=0)


def _options_of(caches: Seq[Any], plain: Seq[Any], refused: str) -> CacheOptions:
    """The options with which a model makes such caches.

    Raises:
        InvalidRequest: none are.
    """
    if len(caches) != len(plain):
        raise InvalidRequest(f"{refused}: {len(caches)} layers in it, {len(plain)} in the model")
    found = PLAIN_CACHES
    for own, like in zip(caches, plain, strict=True):
        packing, window = packing_of(own), window_of(own)
        if kind_of(like) != "full":
            known = type(own) is type(like) and window == window_of(like)
        elif packing is not None:
            found = CacheOptions(kv_bits=packing.bits, kv_group_size=packing.group_size)
            known = True
        else:
            known = type(own) is type(like)
            if window is not None and window[1] == KEPT_TOKENS:
                found, known = CacheOptions(max_kv_size=window[0]), True
        if not known:
            raise InvalidRequest(
                f"{refused}: it keeps a {type(own).__name__}{window or ''} where the model has a "
                f"{type(like).__name__}{window_of(like) or ''}"
            )
    return found


def _wanted(options: CacheOptions, found: CacheOptions, tokens: int, where: str) -> CacheOptions:
    """The options to run with, which a file must be of."""
    late = options.late and found == PLAIN_CACHES and tokens <= options.quantized_kv_start
    if options.kv_bits is None:
        options = replace(options, kv_group_size=found.kv_group_size, quantized_kv_start=0)
    if not late and options != found:
        raise InvalidRequest(
            f"{where} was made {_in_words(found)}, and {_in_words(options)} is asked for: "
            "leave such options away, and the file's are taken"
        )
    return options


def _in_words(options: CacheOptions) -> str:
    if options.kv_bits is not None:
        return (
            f"with --kv-bits {options.kv_bits} --kv-group-size {options.kv_group_size} "
            f"--quantized-kv-start {options.quantized_kv_start}"
        )
    if options.max_kv_size is not None:
        return f"with --max-kv-size {options.max_kv_size}"
    return "without --kv-bits and --max-kv-size"


def _check_shapes(parts: Seq[RowState], caches: Seq[Any], model: Any, refused: str) -> None:
    """Refuse arrays of other heads, sizes or types than the model's; nothing is computed."""
    model(mx.array([[0]]), cache=caches)
    for part, like in zip(parts, take(own_leaves(caches)), strict=True):
        if len(part.arrays) != len(like.arrays):
            raise InvalidRequest(
                f"{refused}: {len(part.arrays)} states in a layer, {len(like.arrays)} in the model"
            )
        for one, other in zip(part.arrays, like.arrays, strict=True):
            if 0 in (one.size, other.size):
                continue
            found, wanted = _sizes(one), _sizes(other)
            if found != wanted:
                raise InvalidRequest(f"{refused}: {found} heads and sizes in it, {wanted} here")
            if one.dtype != other.dtype:
                own, here = (str(array.dtype).rpartition(".")[2] for array in (one, other))
                raise InvalidRequest(
                    f"{refused} as it was loaded here: its numbers are {own}, and here they are "
                    f"{here} (--dtype {own}, or make it again with `mlx-spec cache-prompt`)"
                )


def _sizes(array: mx.array) -> tuple[int, ...]:
    """Heads and size of keys or values, [1, H, N, D]; all sizes of anything else."""
    return (array.shape[1], array.shape[3]) if array.ndim == 4 else tuple(array.shape[1:])


def _noted(notes: dict[str, Any], model: Any, where: str) -> list[int] | None:
    """The tokens that a file of ours names."""
    if _TOKENS not in notes:
        return None
    try:
        tokens = [int(token) for token in json.loads(notes[_TOKENS])]
    except (ValueError, TypeError, RecursionError):
        tokens = []
    size = model_vocabulary(model)
    if not tokens or min(tokens) < 0 or max(tokens) >= size:
        raise InvalidRequest(
            f"{where} is broken: it names no tokens, or others than 0 .. {size - 1}"
        )
    return tokens


def _told(
    tokens: list[int] | None,
    parts: Seq[RowState],
    caches: Seq[Any],
    model: Any,
    errors: tuple[str, str],
) -> list[int]:
    """Tokens told from the values of the first layer; or those that are known, compared with it."""
    where, refused = errors
    first = len(own_leaves(own_caches(model)[:1]))  # caches of the first layer
    for place, (part, own) in enumerate(zip(parts[:first], caches, strict=False)):
        count = tokens_in([own])
        if count is None:
            continue
        arrays = part.arrays
        values = arrays[1] if len(arrays) == 2 else part.note.numbers(arrays)[1][0]
        if values.shape[2] != count:
            raise InvalidRequest(
                f"{where} does not say its tokens, and its first layer holds the last "
                f"{values.shape[2]} of {count}: make it again with `mlx-spec cache-prompt`"
            )
        if tokens is None:
            return tell_tokens(values, place, model, where)
        check_tokens(tokens, values, place, model, refused)
        return tokens
    raise InvalidRequest(
        f"{where} does not say its tokens, and the model's first layer keeps states, from which "
        "they cannot be told: make it again with `mlx-spec cache-prompt`"
    )


def mark_of(model: Any) -> str:
    """What two models with the same weights have in common: their names, shapes, types, and a few
    numbers of each."""
    digest, few = blake2b(digest_size=16), []
    for path, array in sorted(tree_flatten(model.parameters())):
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        if array.size:
            few.append(mx.contiguous(array.reshape(-1)[:: max(1, array.size // 8)]).view(mx.uint8))
    digest.update(np.asarray(mx.concatenate(few)).tobytes() if few else b"")
    return digest.hexdigest()


def _sum_of(parts: Seq[RowState]) -> str:
    """A check sum of all numbers of a text."""
    total = 0
    for part in parts:
        for array in part.arrays:
            if array.size:
                numbers = mx.contiguous(array).reshape(-1).view(mx.uint8)
                total = zlib.crc32(np.asarray(numbers).tobytes(), total)
    return f"{total:08x}"
