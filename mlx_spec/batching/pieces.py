"""``TokenPieces``: what a token alone stands for, bytes or text, where a tokenizer's tokens can be
taken one by one.

Two families can, and they are nearly all: byte-level vocabularies (GPT-2, Llama 3, Qwen), where
each token is a string of bytes written in stand-in letters, and vocabularies with byte fallback
(Llama 2, Mistral, Gemma), where a token is a piece of text, or one byte as ``<0xE4>``. Bytes of
neighbours join to characters by UTF-8 and by nothing else, so that a stray one costs itself only
(the library's own decoder gives up all bytes of a run for it).

A byte-level vocabulary under another family's decoder (a tokenizer saved under the wrong class) is
known by its tokens, and read as what it is.
"""

from __future__ import annotations

import json
import re
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

from mlx_spec.token_bytes import LETTERS as LETTERS

Piece: TypeAlias = bytes | str
T = TypeVar("T")

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Tokens of which one is surely there and is plain text in any context.
_ANCHORS = ("a", "▁a", "e", "▁the", "0", "A", ".")
_SAMPLE = 2000
_PATIENCE = 200  # tries, a millisecond apart


class TokenPieces:
    """The pieces of one tokenizer, looked up as they are needed.

    Args:
        backend: a tokenizer of the ``tokenizers`` library.
        read: what a token stands for; the backend is asked once a token.
    """

    def __init__(self, backend: Any, read: Callable[[Any, int], Piece]) -> None:
        self._backend, self._read = backend, read
        self._known: dict[int, Piece] = {}

    def __getitem__(self, token: int) -> Piece:
        piece = self._known.get(token)
        if piece is None:
            piece = patiently(lambda: self._read(self._backend, token))
            self._known[token] = piece
        return piece


def patiently(call: Callable[[], T]) -> T:
    """What ``call`` returns; another thread may hold the tokenizer for a moment."""
    for _ in range(_PATIENCE):
        try:
            return call()
        except RuntimeError as error:
            if "borrowed" not in str(error):
                raise
            time.sleep(0.001)
    return call()


_FOUND: weakref.WeakKeyDictionary[Any, TokenPieces | None] = weakref.WeakKeyDictionary()


def pieces_of(tokenizer: Any, backend: Any) -> TokenPieces | None:
    """The pieces of a tokenizer; None where tokens must be decoded together.

    Args:
        tokenizer: the owner, with which what was found is forgotten.
        backend: its tokenizer of the ``tokenizers`` library.
    """
    try:
        if tokenizer not in _FOUND:
            _FOUND[tokenizer] = find_pieces(backend)
        return _FOUND[tokenizer]
    except TypeError:  # no hash, or no weak references
        return find_pieces(backend)


def find_pieces(backend: Any) -> TokenPieces | None:
    """The same, looked for anew."""
    kinds = list(_decoders(backend))
    names = {kind["type"] for kind in kinds}
    if "ByteLevel" in names and names <= {"ByteLevel", "Fuse"}:
        return TokenPieces(backend, _byte_level)
    at_end = any(kind.get("stop") for kind in kinds if kind["type"] == "Strip")
    if _all_there(backend, (f"<0x{byte:02X}>" for byte in range(256))):
        joined = names <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and not at_end
        return TokenPieces(backend, _Fallback(backend)) if joined else None
    return TokenPieces(backend, _byte_level) if _written_in_letters(backend) else None


def _decoders(backend: Any) -> Iterator[dict[str, Any]]:
    """The tokenizer's decoder, taken apart."""
    if backend.decoder is not None:
        pending = [json.loads(backend.decoder.__getstate__())]
        while pending:
            one = pending.pop()
            pending += one.get("decoders", ())
            if one["type"] != "Sequence":
                yield one


def _all_there(backend: Any, tokens: Any) -> bool:
    return all(backend.token_to_id(token) is not None for token in tokens)


def _written_in_letters(backend: Any) -> bool:
    """Whether the vocabulary is byte-level: all letters, and words that begin with the one for a
    blank, not with the mark that other families put there."""
    if not _all_there(backend, LETTERS):
        return False
    size = backend.get_vocab_size()
    sample = [backend.id_to_token(i) or "" for i in range(0, size, max(1, size // _SAMPLE))]
    blanks = sum(token.startswith("Ġ") for token in sample)
    return blanks > 0 and not any(token.startswith("▁") for token in sample)


def _byte_level(backend: Any, token: int) -> Piece:
    """A token of stand-in letters; one that has others too is text."""
    text = backend.id_to_token(token) or ""
    values = [LETTERS.get(letter) for letter in text]
    return text.encode() if None in values else bytes(values)  # type: ignore[arg-type]


class _Fallback:
    """Tokens of a vocabulary with byte fallback: one byte, or text as it stands behind other text.

    Only the beginning of a text is decoded otherwise (a blank goes), so an anchor stands before
    every token.
    """

    def __init__(self, backend: Any) -> None:
        found = (backend.token_to_id(name) for name in _ANCHORS)
        ids = (token for token in found if token is not None)
        plain = (t for t in range(backend.get_vocab_size()) if self._text(backend, [t]).isalnum())
        self._anchor = next(ids, None) or next(plain, None)

    @staticmethod
    def _text(backend: Any, ids: list[int]) -> str:
        return str(backend.decode(ids, skip_special_tokens=False))

    def __call__(self, backend: Any, token: int) -> Piece:
        byte = _BYTE.fullmatch(backend.id_to_token(token) or "")
        if byte:
            return bytes([int(byte[1], 16)])
        before = [] if self._anchor is None else [self._anchor]
        return self._text(backend, [*before, token])[len(self._text(backend, before)) :]
