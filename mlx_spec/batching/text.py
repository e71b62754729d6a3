"""From tokens to text, one request at a time: incremental, and with stop texts.

Text is given out only when it is certain: never half a character (the ``tokenizers`` library's
``DecodeStream`` holds incomplete bytes back), and never the beginning of what may become a stop
text. Stop texts are found wherever they fall, across token boundaries or inside an accepted run.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

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


class FastDetokenizer:
    """Over the Rust tokenizer that backs most Hugging Face tokenizers."""

    def __init__(self, backend: Any, prompt: Seq[int]) -> None:
        self._backend = backend
        context = list(prompt[-CONTEXT_TOKENS:])
        # A context that ends within a character would come out again with the first token.
        if backend.decode(context, skip_special_tokens=False).endswith("\ufffd"):
            context = []
        self._stream = self._open(context)
        self._good = context  # tokens whose text was given out
        self._pending: list[int] = []

    @staticmethod
    def _open(context: list[int]) -> DecodeStream:
        return DecodeStream(ids=context, skip_special_tokens=False)

    def add(self, token: int) -> str:
        """The text that this token makes certain, perhaps none."""
        self._pending.append(token)
        try:
            text = self._stream.step(self._backend, token) or ""
        except Exception:  # the library's own type, raised for bytes that are no text
            # One row's broken bytes must not end the batch: they are dropped.
            self._stream = self._open(self._good)
            text = self._stream.step(self._backend, token) or ""
            self._pending = [token]
        if text:
            self._good = (self._good + self._pending)[-CONTEXT_TOKENS:]
            self._pending = []
        return text

    def finish(self) -> str:
        """Nothing: bytes of an incomplete character are no text."""
        return ""


class WrapperDetokenizer:
    """Over mlx-lm's streaming detokenizer, for tokenizers without a Rust backend."""

    def __init__(self, tokenizer: Any) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._detokenizer.reset()

    def add(self, token: int) -> str:
        """The text that this token makes certain, perhaps none."""
        self._detokenizer.add_token(token)
        return str(self._detokenizer.last_segment)

    def finish(self) -> str:
        """What the detokenizer held back."""
        self._detokenizer.finalize()
        return str(self._detokenizer.last_segment)


class NoDetokenizer:
    """Without a tokenizer there are tokens only."""

    def add(self, token: int) -> str:
        """No text."""
        return ""

    def finish(self) -> str:
        """No text."""
        return ""


def make_detokenizer(tokenizer: Any, prompt: Seq[int]) -> Detokenizer:
    """The best detokenizer for ``tokenizer`` (None: no text)."""
    if tokenizer is None:
        return NoDetokenizer()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return FastDetokenizer(backend, prompt) if backend else WrapperDetokenizer(tokenizer)


class StopFinder:
    """Finds the first stop text in text that comes in pieces.

    Args:
        stops: the stop texts; none is empty.
    """

    def __init__(self, stops: Seq[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """The text that is certainly not part of a stop text, and whether one was found."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self._held = ""
            return text[: min(places)], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was held back and became no stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0


class TextStream:
    """The text of one request.

    Attributes:
        text: everything given out so far.
        stopped: a stop text was found; nothing follows.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Seq[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._finder = StopFinder(stops)
        self._pieces: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything given out so far."""
        return "".join(self._pieces)

    def add(self, token: int) -> str:
        """Take one token; return the text it makes certain."""
        return self._give(self._detokenizer.add(token))

    def finish(self) -> str:
        """No token follows; return what was held back."""
        if self.stopped:
            return ""
        piece = self._give(self._detokenizer.finish())
        if not self.stopped:
            rest = self._finder.finish()
            self._pieces.append(rest)
            piece += rest
        return piece

    def _give(self, piece: str) -> str:
        piece, self.stopped = self._finder.add(piece)
        self._pieces.append(piece)
        return piece
