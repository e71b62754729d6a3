"""The text of one request, as its tokens come: certain, and ended by stop texts.

Text is given out only when it is certain: never half a character (``detokenizers`` hold those
back), and never the beginning of what may become a stop text. Stop texts are found wherever they
fall, across token boundaries or inside an accepted run.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.batching.detokenizers import Detokenizer


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


def spell(tokenizer: Any, token: int) -> str:
    """One token alone as text; empty where there is no tokenizer, or it has none for it."""
    if tokenizer is None:
        return ""
    try:
        return str(tokenizer.decode([token]))
    except Exception:  # a foreign tokenizer may raise anything
        return ""
