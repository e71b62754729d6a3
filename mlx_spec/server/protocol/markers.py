"""``Splitter``: a model's text by its control texts, as it comes: reasoning, tool calls, the rest.

Nothing is given out that may yet turn out to be the beginning of a control text, and none of these
is ever given out::

    add("<thi")          -> nothing yet
    add("nk>Hm.</think>Yes")  -> reasoning "Hm.", ended; text "Yes"

The states and what leads from one to another are those of mlx-lm's tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, TypeAlias

TEXT, REASONING, TOOL = "normal", "reasoning", "tool"

Transitions: TypeAlias = Mapping[str, Seq[tuple[str, str]]]
"""For each state: control texts, and the state that each leads to."""


@dataclass(frozen=True)
class MarkedText:
    """Text of one state.

    Attributes:
        state: ``TEXT``, ``REASONING``, ``TOOL``, or another that a template has.
        text: some of it.
        ended: the control text that ends it came.
    """

    state: str
    text: str
    ended: bool = False


def transitions_of(tokenizer: Any, tools: bool) -> Transitions:
    """Those of a model; tool calls are looked for only where ``tools`` were given."""
    edges: dict[str, list[tuple[str, str]]] = {TEXT: [], REASONING: [], TOOL: []}
    if getattr(tokenizer, "has_thinking", False):
        edges[TEXT].append((tokenizer.think_start, REASONING))
        edges[REASONING].append((tokenizer.think_end, TEXT))
    further = getattr(tokenizer, "response_transitions", None) or {}
    if tools and getattr(tokenizer, "has_tool_calling", False):
        # Where a template says itself what leads to calls, nothing else does.
        if TOOL not in {state for pairs in further.values() for _, state in pairs}:
            edges[TEXT].append((tokenizer.tool_call_start, TOOL))
        edges[REASONING].append((tokenizer.tool_call_start, TOOL))
        if tokenizer.tool_call_end:
            edges[TOOL].append((tokenizer.tool_call_end, TEXT))
    for marker in getattr(tokenizer, "structural_markers", None) or ():
        edges[TEXT].append((marker, TEXT))
    for state, pairs in further.items():
        edges.setdefault(state, []).extend(pairs)
    return edges


class Splitter:
    """Parts one text.

    Args:
        transitions: of the model.
        state: in which the text begins.

    Attributes:
        state: in which it stands.
    """

    def __init__(self, transitions: Transitions, state: str = TEXT) -> None:
        self._edges, self.state, self._held = transitions, state, ""

    def add(self, piece: str) -> list[MarkedText]:
        """Take text; what it makes certain."""
        self._held += piece
        found: list[MarkedText] = []
        while True:
            edges = self._edges.get(self.state, ())
            first = min(
                (
                    (place, -len(marker), state)
                    for marker, state in edges
                    if (place := self._held.find(marker)) >= 0
                ),
                default=None,
            )
            if first is None:
                keep = max((_overlap(self._held, marker) for marker, _ in edges), default=0)
                sure = self._held[: len(self._held) - keep]
                self._held = self._held[len(sure) :]
                return [*found, MarkedText(self.state, sure)] if sure else found
            place, size, state = first
            found.append(MarkedText(self.state, self._held[:place], ended=True))
            self._held, self.state = self._held[place - size :], state

    def finish(self) -> list[MarkedText]:
        """No text follows: what was held back is no control text."""
        held, self._held = self._held, ""
        return [MarkedText(self.state, held)] if held else []


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that begins ``marker`` and is not all of it."""
    sizes = range(min(len(text), len(marker) - 1), 0, -1)
    return next((size for size in sizes if marker.startswith(text[-size:])), 0)
