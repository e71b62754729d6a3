"""Conversations as files: JSON in the forms that people and tools write, in and out again.

A file is one conversation (a list of messages, or an object with ``messages`` and perhaps
``tools``), a list of such, or one a line. What is written has the form of what was read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_spec.cli.new_files import write_json, write_whole
from mlx_spec.errors import InvalidRequest
from mlx_spec.text_files import decode, read_text

_FORM = 'expected a list of {"role": ..., "content": ...}, or an object with "messages"'


@dataclass(frozen=True)
class ChatRecord:
    """One conversation of a file.

    Attributes:
        messages: as they stand there.
        tools: descriptions of functions that the model may call.
        fields: the object around them; None where there is none.
    """

    messages: list[Mapping[str, Any]]
    tools: tuple[Any, ...] = ()
    fields: Mapping[str, Any] | None = None

    def answered(self, text: str) -> Any:
        """The same, in its form, with the answer as one message more."""
        messages = [*self.messages, {"role": "assistant", "content": text}]
        return messages if self.fields is None else {**self.fields, "messages": messages}


@dataclass(frozen=True)
class ChatFile:
    """What a file holds.

    Attributes:
        conversations: in their order.
        form: ``one`` conversation, a ``list`` of them, or one a line: ``lines``.
    """

    conversations: list[ChatRecord]
    form: str

    def answered(self, path: Path, answers: Sequence[str]) -> None:
        """Write all conversations with their answers, in the form that they were read in.

        Raises:
            OutputError: the file cannot be written.
        """
        pairs = zip(self.conversations, answers, strict=True)
        records = [one.answered(text) for one, text in pairs]
        where = f"[generate] --save-messages {path}"
        if self.form == "lines":
            lines = (json.dumps(record, ensure_ascii=False) for record in records)
            write_whole(path, "".join(f"{line}\n" for line in lines), where)
        else:
            write_json(path, records if self.form == "list" else records[0], where)


def read_conversations(path: Path, where: str) -> ChatFile:
    """The conversations of a file; ``-`` is stdin.

    Args:
        path: the file.
        where: begins every error.

    Raises:
        InvalidRequest: it cannot be read, or holds something else.
    """
    piped = str(path) == "-"
    text = decode(sys.stdin.buffer.read(), where) if piped else read_text(path, where)
    if not text.strip():
        raise InvalidRequest(f"{where}: empty, {_FORM}")
    found: Any = None
    if path.suffix != ".jsonl":
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
    if found is None:
        pairs = _lines(text, where)
        return ChatFile([_record(one, f"{where}: line {n}") for n, one in pairs], "lines")
    if isinstance(found, list) and (not found or not _is_message(found[0])):
        if not found:
            raise InvalidRequest(f"{where}: no messages in it")
        numbered = enumerate(found, start=1)
        return ChatFile([_record(one, f"{where}: conversation {n}") for n, one in numbered], "list")
    return ChatFile([_record(found, where)], "one")


def _lines(text: str, where: str) -> list[tuple[int, Any]]:
    """JSON lines; where the first is none, the whole is no JSON at all."""
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{where}: line {number} is not JSON: {error}") from error
    return found


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "messages" not in value


def _record(value: Any, where: str) -> ChatRecord:
    fields = value if isinstance(value, Mapping) else None
    messages = value.get("messages") if fields is not None else value
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest(f"{where}: {_FORM}")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequest(f"{where}: message {number} has no role; {_FORM}")
    tools = fields.get("tools") if fields is not None else None
    if tools is not None and not isinstance(tools, list):
        raise InvalidRequest(f"{where}: tools is {type(tools).__name__}, expected a list")
    return ChatRecord(messages, tuple(tools or ()), fields)
