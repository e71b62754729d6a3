"""Several texts that grow at once, shown one after another on one screen.

The first unfinished prompt's text is shown live; the others' text waits and appears, as far as it
has come, when their turn comes. Framed as mlx-lm frames its one text. Knows no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from mlx_spec.cli.draft_colors import DraftPaint
from mlx_spec.cli.terminal import marked
from mlx_spec.results import GenerationChunk

FRAME = "=" * 10
_TITLE_WIDTH = 60


class OrderedPrinter:
    """Writes chunks of several prompts in the order of the prompts.

    Args:
        prompts: the prompts, for the titles.
        out: where to write.
        framed: mlx-lm's frame around each text, and a title where there are several; without it
            each text is followed by a line break and nothing else.
        paint: shows each token.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        out: TextIO,
        framed: bool = True,
        paint: DraftPaint | None = None,
    ) -> None:
        self._prompts = prompts
        self._out = out
        self._framed = framed
        self._paint = paint or DraftPaint(out, wanted=False)
        self._texts = [""] * len(prompts)  # what has come
        self._waiting: list[list[str]] = [[] for _ in prompts]  # of it, as it will be shown
        self._finished = [False] * len(prompts)
        self._current = 0
        self._open()

    def add(self, chunk: GenerationChunk) -> None:
        """Take one chunk; show what can be shown."""
        self._texts[chunk.index] += chunk.text
        self._waiting[chunk.index].append(self._paint.of(chunk))
        self._finished[chunk.index] = chunk.finish_reason is not None
        if chunk.index == self._current:
            self._show()
            while self._current < len(self._prompts) and self._finished[self._current]:
                self._next()

    def finish(self, texts: Sequence[str]) -> None:
        """Show everything that was not shown: ``texts`` are the whole texts, as they stand."""
        for place, text in enumerate(texts):
            self._waiting[place].append(text[len(self._texts[place]) :])
        self._texts = list(texts)
        while self._current < len(self._prompts):
            self._show()
            self._next()

    def _show(self) -> None:
        self._out.write("".join(self._waiting[self._current]))
        self._out.flush()
        self._waiting[self._current].clear()

    def _next(self) -> None:
        """Close the current text and begin the next one with what there is of it."""
        if self._framed and not self._texts[self._current]:
            self._out.write("No text generated for this prompt")
        self._out.write(f"\n{FRAME}\n" if self._framed else "\n")
        self._current += 1
        if self._current < len(self._prompts):
            self._title()
            self._show()

    def _open(self) -> None:
        if self._framed:
            self._out.write(f"{FRAME}\n")
        self._title()
        self._out.flush()

    def _title(self) -> None:
        if self._framed and len(self._prompts) > 1:
            # On one line, and yet as it is: where lines end is part of a prompt.
            title = "\\n".join(self._prompts[self._current].splitlines())
            title = title if len(title) <= _TITLE_WIDTH else f"{title[:_TITLE_WIDTH]}..."
            head = f"[prompt {self._current + 1}/{len(self._prompts)}] {title}"
            self._out.write(f"{marked(head, self._out)}\n")
