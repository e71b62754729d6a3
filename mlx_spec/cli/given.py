"""What ``mlx-spec generate`` is given to answer: texts and conversations, and both as one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mlx_spec.cli.messages_file import ChatFile, ChatRecord, read_conversations
from mlx_spec.cli.prompts import read_prompts
from mlx_spec.errors import InvalidRequest

Given: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a conversation."""


@dataclass(frozen=True)
class GivenPrompts:
    """All prompts of a run.

    Attributes:
        prompts: texts first, then conversations.
        chats: the file of the conversations; None where there is none.
    """

    prompts: list[Given]
    chats: ChatFile | None = None

    @property
    def tools(self) -> tuple[Any, ...]:
        """What the model may call.

        Raises:
            InvalidRequest: conversations that run together have different ones.
        """
        found = [] if self.chats is None else [one.tools for one in self.chats.conversations]
        if any(tools != found[0] for tools in found):
            raise InvalidRequest(
                "[generate] --messages: conversations of one run must have the same tools"
            )
        return found[0] if found else ()

    def as_chats(self, system: str | None) -> ChatFile:
        """All of them as conversations, for a file with the answers."""
        first = [] if system is None else [{"role": "system", "content": system}]
        texts = [
            ChatRecord([*first, {"role": "user", "content": prompt}])
            for prompt in self.prompts
            if isinstance(prompt, str)
        ]
        if self.chats is not None and not texts:
            return self.chats
        chats = [] if self.chats is None else self.chats.conversations
        return ChatFile([*texts, *chats], "one" if len(self.prompts) == 1 else "list")


def read_all(options: Sequence[str], file: Path | None, messages: Path | None) -> GivenPrompts:
    """The prompts of ``--prompt``, ``--prompt-file`` and ``--messages``, in that order.

    Without any, what is piped in. Empty if there is none.

    Raises:
        InvalidRequest: a source that cannot be read, or holds something else.
    """
    if messages is None:
        return GivenPrompts(list(read_prompts(options, file)))
    if str(messages) == "-" and "-" in options:
        raise InvalidRequest("[generate] --prompt - and --messages -: stdin can be read once")
    # Where conversations are given, what is piped in is no prompt.
    texts = read_prompts(options, file) if options or file is not None else []
    chats = read_conversations(messages, f"[generate] --messages {messages}")
    given = GivenPrompts([*texts, *(one.messages for one in chats.conversations)], chats)
    assert given.tools is not None  # refused now if they differ
    return given
