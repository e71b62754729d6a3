"""Detokenizers: from tokens to text, one request at a time, as certain as it can be.

Text is given out once it cannot change any more: never half a character. Bytes that are no text
become replacement characters, each bad run one, and cost nothing beside it; an incomplete character
at the very end is no text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence as Seq
from functools import cached_property
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

from mlx_spec.batching.pieces import TokenPieces, patiently, pieces_of

# Enough of the prompt to decode the first token as a continuation (spaces, open characters).
CONTEXT_TOKENS = 8


class Detokenizer(Protocol):
    """Turns tokens into text as they come."""

    def add(self, token: int) -> str:
        """The text that this token makes certain, perhaps none."""
        ...

    def finish(self) -> str:
        """What was held back."""
        ...


class PieceDetokenizer:
    """Where tokens stand for bytes or text each (see ``pieces``)."""

    def __init__(self, pieces: TokenPieces) -> None:
        self._pieces = pieces
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        piece = self._pieces[token]
        if isinstance(piece, bytes):
            return self._bytes.decode(piece)
        if not piece:
            return ""
        # What was begun before a text stays incomplete.
        return self._bytes.decode(b"", final=True) + piece

    def finish(self) -> str:
        """Nothing: bytes of an incomplete character are no text."""
        return ""


class StreamDetokenizer:
    """Where tokens must be decoded together: the ``tokenizers`` library's own ``DecodeStream``."""

    def __init__(self, backend: Any, prompt: Seq[int]) -> None:
        self._backend = backend
        context = list(prompt[-CONTEXT_TOKENS:])
        # A context that ends within a character would come out again with the first token.
        decoded = patiently(lambda: backend.decode(context, skip_special_tokens=False))
        if decoded.endswith("\ufffd"):
            context = []
        self._stream = self._open(context)
        self._good = context  # tokens whose text was given out
        self._pending: list[int] = []

    @staticmethod
    def _open(context: list[int]) -> DecodeStream:
        return DecodeStream(ids=context, skip_special_tokens=False)

    def add(self, token: int) -> str:
        self._pending.append(token)
        try:
            text = self._step(token)
        except Exception as error:  # the library's own type
            if "Invalid prefix" not in str(error):
                raise
            # Decoded with what follows, the text before it became another: go on behind it.
            self._stream = self._open(self._good)
            text = self._step(token)
            self._pending = [token]
        if text:
            self._good = (self._good + self._pending)[-CONTEXT_TOKENS:]
            self._pending = []
        return text

    def _step(self, token: int) -> str:
        return patiently(lambda: self._stream.step(self._backend, token)) or ""

    def finish(self) -> str:
        """Nothing: bytes of an incomplete character are no text."""
        return ""


class WrapperDetokenizer:
    """Over mlx-lm's streaming detokenizer, for tokenizers without a Rust backend."""

    def __init__(self, tokenizer: Any) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._detokenizer.reset()

    def add(self, token: int) -> str:
        self._detokenizer.add_token(token)
        return str(self._detokenizer.last_segment)

    def finish(self) -> str:
        """What the detokenizer held back."""
        self._detokenizer.finalize()
        return str(self._detokenizer.last_segment)


class NoDetokenizer:
    """Without a tokenizer there are tokens only."""

    def add(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class LateDetokenizer:
    """Opens another one with the first token, where what that raises is one request's alone."""

    def __init__(self, tokenizer: Any, prompt: Seq[int]) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt

    @cached_property
    def _opened(self) -> Detokenizer:
        return make_detokenizer(self._tokenizer, self._prompt)

    def add(self, token: int) -> str:
        return self._opened.add(token)

    def finish(self) -> str:
        return self._opened.finish()


def make_detokenizer(tokenizer: Any, prompt: Seq[int]) -> Detokenizer:
    """The best detokenizer for ``tokenizer`` (None: no text)."""
    if tokenizer is None:
        return NoDetokenizer()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not backend:
        return WrapperDetokenizer(tokenizer)
    pieces = pieces_of(tokenizer, backend)
    return PieceDetokenizer(pieces) if pieces else StreamDetokenizer(backend, prompt)
