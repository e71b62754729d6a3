"""``AnswerReader``: what a model's text consists of: reasoning, the answer, calls of tools.

The same reader makes streams and whole answers, so that both say the same: piece by piece or at
once, the parts come out equal. Blanks that only stand between parts belong to none. What looks like
a call and is none stays in the answer, as the model wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from mlx_spec.results import GenerationChunk, GenerationResult
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.call_stream import CallStream
from mlx_spec.server.protocol.ends import ended_itself
from mlx_spec.server.protocol.markers import (
    REASONING,
    TEXT,
    TOOL,
    MarkedText,
    Splitter,
    transitions_of,
)
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.protocol.tools import (
    NO_TOOLS,
    ToolCall,
    ToolUse,
    listed_calls,
    parsed_calls,
)


@dataclass(frozen=True)
class Said:
    """Text of the answer, more of it."""

    text: str


@dataclass(frozen=True)
class Thought:
    """Reasoning, more of it."""

    text: str


@dataclass(frozen=True)
class Called:
    """A call, or more of the arguments of the last one.

    Attributes:
        call: with the arguments that are known.
        begins: whether it is a new call.
    """

    call: ToolCall
    begins: bool = True


BLANKS = " \t\r\n"

Part: TypeAlias = Said | Thought | Called


@dataclass(frozen=True)
class Reading:
    """How a request's texts are to be read.

    Attributes:
        tokenizer: of the model that writes them.
        tools: what may be called.
        thinking: whether they begin in the middle of reasoning.
        split: whether reasoning is told apart at all.
        request_id: what ids of calls are made of.
        shaped: whether the answer is what a constraint leaves: what looks like a mark in it is text
            like any other.
    """

    tokenizer: Any
    tools: ToolUse = NO_TOOLS
    thinking: bool = False
    split: bool = True
    request_id: str = ""
    shaped: bool = False

    @classmethod
    def of(cls, asked: Asked, served: ServedModel, tools: ToolUse, split: bool = True) -> Reading:
        """How the texts of a request are; a grammar may have the model write its marks."""
        structure = asked.sampling.structure
        shaped = structure is not None and structure.kind != "grammar"
        thinking = asked.thinking and split
        return cls(served.tokenizer, tools, thinking, split, asked.request_id, shaped)

    def reader(self, index: int) -> AnswerReader:
        """For text ``index`` of the request."""
        return AnswerReader(self, f"{self.request_id}_{index}")


class AnswerReader:
    """Reads one text.

    Args:
        how: of the request.
        name: what ids of calls are made of.

    Attributes:
        calls: how many there were.
    """

    def __init__(self, how: Reading, name: str) -> None:
        self._how, self._name, self.calls = how, name, 0
        own = not (how.shaped or how.tools.forced)  # whether the model writes as it is used to
        calls = how.tools.mode == "auto" and own
        edges = transitions_of(how.tokenizer, calls) if how.split else {}
        if not own:
            edges = {REASONING: edges.get(REASONING, ())}
        wanted = how.split and own
        start = getattr(how.tokenizer, "response_initial_state", None) if wanted else None
        self._splitter = Splitter(edges, REASONING if how.thinking else start or TEXT)
        self._text = _Blanks(between=bool(edges.get(TEXT)))
        self._reasoning = _Blanks(between=True)
        self._reasoning.part()
        self._tool = ""  # what came between the markers of a call, or of a text that is calls
        self._stream, self._more = CallStream(how.tokenizer), False

    def add(self, piece: str) -> list[Part]:
        """Take text; the parts that it makes certain."""
        return self._taken(self._splitter.add(piece))

    def take(self, chunk: GenerationChunk) -> list[Part]:
        """All that a token makes certain, the end of the text among it."""
        parts = self.add(chunk.text)
        if chunk.finish_reason is not None:
            parts += self.finish(ended_itself(chunk.finish_reason))
        return parts

    def finish(self, complete: bool) -> list[Part]:
        """No text follows; ``complete``: the model ended it itself."""
        parts = self._taken(self._splitter.finish())
        if self._how.tools.forced:
            calls = listed_calls(self._tool) if self._tool else []
            return [*parts, *(self._called(calls) if calls else _said(self._tool))]
        if self._tool:
            parts += self._closed(complete, "")
        return [*parts, *_said(self._text.rest())]

    def _taken(self, stretches: Seq[MarkedText]) -> list[Part]:
        parts: list[Part] = []
        for one in stretches:
            if one.state == TEXT:
                text = self._text.add(one.text)
                parts += self._forced(text) if self._how.tools.forced else _said(text)
            elif one.state == TOOL:
                self._tool += one.text
                parts += self._streamed(one.text)
            elif one.state == REASONING and (text := self._reasoning.add(one.text)):
                self._text.part()
                parts.append(Thought(text))
            if one.ended and one.state == REASONING:
                self._text.part()
                self._reasoning.part()
            if one.ended and one.state == TOOL:
                parts += self._closed(True, self._how.tokenizer.tool_call_end)
        return parts

    def _closed(self, whole: bool, end: str) -> list[Part]:
        """What came between the markers of a call, if it is one; else it is text."""
        text, self._tool = self._tool, ""
        stream, self._stream = self._stream, CallStream(self._how.tokenizer)
        if stream.begun:
            return []
        tokenizer, tools = self._how.tokenizer, self._how.tools
        calls = parsed_calls(text, tokenizer, tools.tools) if whole else []
        if calls:
            self._text.part()
            return self._called(calls)
        return _said(self._text.add(f"{tokenizer.tool_call_start}{text}{end}"))

    def _streamed(self, piece: str) -> list[Part]:
        """What is known of a call before it is whole."""
        parts: list[Part] = []
        for more in self._stream.add(piece):
            if more.name:
                self._text.part()
                begun = self._called([ToolCall(more.name, "", more.id)])
                self._more = bool(begun)
                parts += begun
            elif self._more:
                parts.append(Called(ToolCall("", more.arguments), begins=False))
        return parts

    def _called(self, calls: Seq[ToolCall]) -> list[Part]:
        parallel = self._how.tools.parallel
        taken = calls if parallel else calls[: max(0, 1 - self.calls)]
        first, self.calls = self.calls, self.calls + len(taken)
        named = [
            call if call.id else replace(call, id=f"call_{self._name}_{number}")
            for number, call in enumerate(taken, first)
        ]
        return [Called(call) for call in named]

    def _forced(self, piece: str) -> list[Part]:
        """More of a text that is calls: of the arguments of the one function, or of a list."""
        if self._how.tools.mode == "required":
            self._tool += piece
            return []
        if not piece:
            return []
        if not self.calls:
            return self._called([ToolCall(self._how.tools.name, piece)])
        return [Called(ToolCall(self._how.tools.name, piece), begins=False)]


class _Blanks:
    """One kind of text, without the blanks that stand between it and another kind.

    Args:
        between: whether other kinds can follow at all; else all text passes as it is.
    """

    def __init__(self, between: bool) -> None:
        self._between, self._fresh, self._held = between, False, ""

    def add(self, text: str) -> str:
        """More text; what of it is certain to be some."""
        text = self._held + text
        if self._fresh:
            text = text.lstrip(BLANKS)
            self._fresh = not text
        sure = text.rstrip(BLANKS) if self._between else text
        self._held = text[len(sure) :]
        return sure

    def part(self) -> None:
        """Another kind of text stands here."""
        self._held, self._fresh = "", True

    def rest(self) -> str:
        """No text follows."""
        held, self._held = self._held, ""
        return held


def _said(text: str) -> list[Part]:
    return [Said(text)] if text else []


def blocks_of(how: Reading, result: GenerationResult, index: int) -> list[Part]:
    """A whole text in its parts, in their order; what a stream of it would have piece by piece."""
    reader = how.reader(index)
    blocks: list[Part] = []
    for part in [*reader.add(result.text), *reader.finish(ended_itself(result.finish_reason))]:
        last = blocks[-1] if blocks else None
        if isinstance(part, Said) and isinstance(last, Said):
            blocks[-1] = Said(last.text + part.text)
        elif isinstance(part, Thought) and isinstance(last, Thought):
            blocks[-1] = Thought(last.text + part.text)
        elif isinstance(part, Called) and isinstance(last, Called) and not part.begins:
            whole = last.call.arguments + part.call.arguments
            blocks[-1] = Called(replace(last.call, arguments=whole))
        else:
            blocks.append(part)
    return blocks
