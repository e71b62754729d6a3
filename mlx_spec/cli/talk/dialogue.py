"""``Dialogue``: what was said in a chat, and its file: a JSON list of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_spec.cli.messages_file import read_conversations
from mlx_spec.cli.new_files import write_json
from mlx_spec.errors import InvalidRequest

Message = Mapping[str, Any]


@dataclass
class Dialogue:
    """What was said.

    Attributes:
        system: the system prompt; None for none.
        turns: all other messages, in their order.
    """

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """All messages, as templates take them."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.turns]

    @property
    def exchanges(self) -> int:
        """How many times the user spoke."""
        return sum(turn["role"] == "user" for turn in self.turns)

    def say(self, role: str, text: str) -> None:
        """A message more."""
        self.turns.append({"role": role, "content": text})

    def take_back(self) -> str | None:
        """Forget the user's last message and what followed; returns it, None where there is none.

        (Its text: content in parts is joined.)
        """
        for place in reversed(range(len(self.turns))):
            if self.turns[place]["role"] == "user":
                text = _text(self.turns[place])
                del self.turns[place:]
                return text
        return None

    def drop_oldest(self, count: int = 1) -> int:
        """Forget the oldest exchanges, never the last message; returns how many are gone."""
        for dropped in range(count):
            later = [i for i, turn in enumerate(self.turns) if turn["role"] == "user" and i]
            if not later:
                return dropped
            del self.turns[: later[0]]
        return count

    def begin_with(self, messages: Sequence[Message]) -> None:
        """Replace everything; a system message at the beginning becomes the system prompt."""
        first = messages[0] if messages else {}
        own = first.get("role") == "system"
        self.system = _text(first) if own else None
        self.turns = [dict(message) for message in messages[own:]]

    def save(self, path: Path, *, overwrite: bool) -> None:
        """Write the messages.

        Raises:
            InvalidRequest: the file is there and must not be replaced.
            OutputError: it cannot be written.
        """
        if path.exists() and not overwrite:
            raise InvalidRequest(f"{path} exists; /save! {path} replaces it")
        write_json(path, list(self.messages), f"[chat] {path}")

    def load(self, path: Path) -> None:
        """Replace everything by what a file holds.

        Raises:
            InvalidRequest: it cannot be read, holds no conversation or several, or a message that
                no template takes; then nothing has changed.
        """
        if path.suffix == ".safetensors":
            raise InvalidRequest(
                f"[chat] {path} holds arrays; /load takes messages in JSON, as /save writes them"
            )
        found = read_conversations(path, f"[chat] {path}")
        if len(found.conversations) != 1:
            count = len(found.conversations)
            raise InvalidRequest(f"[chat] {path} holds {count} conversations, expected 1")
        from mlx_spec.batching.messages import check_messages  # whose package takes seconds

        check_messages(found.conversations[0].messages, f"[chat] {path}")
        self.begin_with(found.conversations[0].messages)


def _text(message: Message) -> str:
    """A message's text; of parts, all of them."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    parts = (part if isinstance(part, str) else part.get("text", "") for part in content)
    return "".join(map(str, parts))
