"""The texts of tokens as they are shown: in the colour of the drafter that proposed them.

Colours and their legend are for terminals that take them; into a pipe or a file, and under
``NO_COLOR``, texts go as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from mlx_spec.chunks import GenerationChunk
from mlx_spec.cli.terminal import harmless, marked, takes_marks

# Of the eight that every theme, dark or light, has a readable tone for; the target's own tokens
# have none. Unknown names take those that are left, in their order.
_COLOURS = {"model": 32, "head": 35, "ngram": 36, "self": 33, "lookahead": 34}
_OTHERS = (92, 95, 96, 93, 94)


class DraftPaint:
    """Paints what goes to one terminal.

    Args:
        out: where it goes.
        wanted: paint at all.
    """

    def __init__(self, out: TextIO, wanted: bool = True) -> None:
        self._out = out
        self.on = wanted and takes_marks(out)
        self.tokens: Counter[str | None] = Counter()
        self._colours = dict(_COLOURS)

    def of(self, chunk: GenerationChunk) -> str:
        """The text of a token; on a terminal it can do no harm, and is painted if that is on."""
        self.tokens[chunk.drafter] += 1
        if not chunk.text or not self._out.isatty():
            return chunk.text
        text = harmless(chunk.text)
        if chunk.drafter is None or not self.on:
            return text
        return marked(text, self._out, self._colour(chunk.drafter))

    def key(self, drafters: Iterable[str]) -> str:
        """The names of drafters, each in its colour."""
        return ", ".join(marked(name, self._out, self._colour(name)) for name in drafters)

    def legend(self) -> str | None:
        """How many tokens are whose, in their colours; None where nothing is painted."""
        if not self.on:
            return None
        own = self.tokens[None]
        parts = [
            marked(f"{name} {count}", self._out, self._colour(name))
            for name, count in sorted(
                ((name, count) for name, count in self.tokens.items() if name is not None),
                key=lambda item: -item[1],
            )
        ]
        return f"Tokens proposed by: {', '.join(parts) or 'no drafter'}; the model's own: {own}"

    def _colour(self, drafter: str) -> int:
        if drafter not in self._colours:
            used = len(self._colours) - len(_COLOURS)
            self._colours[drafter] = _OTHERS[used % len(_OTHERS)]
        return self._colours[drafter]
