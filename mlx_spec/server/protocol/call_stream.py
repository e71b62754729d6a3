"""``CallStream``: the calls that a model writes, as they come: the name first, then its arguments.

Only of formats that write arguments as a JSON object, which is handed on letter for letter. Others
(XML, Python) are read when they are whole, by mlx-lm's parsers. A call is one from the beginning of
its arguments on: one that is cut off, or whose JSON is bad, stays a call, as OpenAI has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# Up to the brace that opens the arguments, by the parser of mlx-lm that reads the same.
_HEADS: Mapping[str, re.Pattern[str]] = {
    "json_tools": re.compile(
        r'\s*\{\s*"name"\s*:\s*(?P<text>"(?:[^"\\]|\\.)+")\s*,\s*"arguments"\s*:\s*(?=\{)'
    ),
    "mistral": re.compile(r"\s*(?P<name>[\w-]+)\s*\[ARGS\]\s*(?=\{)"),
    "kimi_k2": re.compile(
        r"\s*(?:<\|tool_call_begin\|>)?\s*(?P<id>(?:functions\.)?(?P<name>[^\s<>{}]+?):\d+)\s*"
        r"<\|tool_call_argument_begin\|>\s*(?=\{)"
    ),
}
_LONGEST = 1000  # letters of a head, behind which none is looked for
# What may stand between two calls.
_BETWEEN = re.compile(r"(?:\s|<\|tool_call_end\|>)*")


class CallPiece(NamedTuple):
    """More of the arguments of a call, or the beginning of another one, without any."""

    arguments: str
    name: str = ""
    id: str = ""


class CallStream:
    """Reads what comes between the markers of calls.

    Args:
        tokenizer: its parser says what a model writes.

    Attributes:
        begun: whether a call has begun.
    """

    def __init__(self, tokenizer: Any) -> None:
        module = getattr(getattr(tokenizer, "tool_parser", None), "__module__", None) or ""
        self._head = _HEADS.get(module.rpartition(".")[2])
        self._several = "json_tools" not in module
        self._held, self._inside, self.begun = "", False, False
        self._depth, self._quoted, self._escaped = 0, False, False

    def add(self, piece: str) -> Iterator[CallPiece]:
        """Take text; what it makes certain."""
        self._held += piece
        while self._held and self._head is not None:
            if self._inside:
                size = self._arguments()
                yield CallPiece(self._held[:size])
                self._held = self._held[size:]
                continue
            if self.begun and not self._several:
                return
            start = _BETWEEN.match(self._held) if self.begun else None
            found = self._head.match(self._held, start.end() if start else 0)
            name = "" if found is None else _name(found)
            if found is None or not name:
                if len(self._held) > _LONGEST:
                    self._head = None
                return
            self.begun = self._inside = True
            self._held = self._held[found.end() :]
            yield CallPiece("", name, found.groupdict().get("id") or "")

    def _arguments(self) -> int:
        """How much of what is held belongs to them."""
        for place, letter in enumerate(self._held):
            if self._quoted:
                self._quoted = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    self._inside = False
                    return place + 1
        return len(self._held)


def _name(head: re.Match[str]) -> str:
    """The function's; empty where it is no text."""
    groups = head.groupdict()
    if (name := groups.get("name")) is not None:
        return name
    try:
        return str(json.loads(groups["text"]))
    except ValueError:
        return ""
