'''What the user says: from a keyboard with history, or line by line from a pipe.

A message is a line. It goes on in the next one where a line ends with a backslash, or from ``"""``
to the next ``"""``; with a keyboard also by Alt-Enter, and what is pasted is one message.
'''

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mlx_spec import interrupts
from mlx_spec.cli.notes import note

QUOTES = '"""'


class Lines(Protocol):
    """Where messages come from."""

    def ask(self) -> str | None:
        """The next message; None at the end.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """


def is_open(text: str) -> bool:
    """Whether more of the message is to come."""
    if text.lstrip().startswith(QUOTES):
        return text.count(QUOTES) % 2 == 1
    return text.endswith("\\")


def whole(text: str) -> str:
    """The message that was meant: without quotes, or backslashes at the ends of lines."""
    bare = text.strip()
    if bare.startswith(QUOTES):
        return bare.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return text.replace("\\\n", "\n")


class PipedLines:
    """Messages of a pipe or file.

    Args:
        file: lines of text; what is no UTF-8 is replaced.
    """

    def __init__(self, file: Iterable[str]) -> None:
        self._lines = iter(file)

    def ask(self) -> str | None:
        """The next message; blank lines are none."""
        text: str | None = None
        for line in self._lines:
            line = line.rstrip("\r\n")
            if text is None and not line.strip():
                continue
            text = line if text is None else f"{text}\n{line}"
            if not is_open(text):
                return whole(text)
        return None if text is None else whole(text.removesuffix("\\"))


class Keyboard:
    """Messages of a terminal, with editing, history and completion of commands.

    Args:
        commands: what can be completed.
        history: file of what was said before; None keeps nothing.
    """

    def __init__(self, commands: Iterable[str], history: Path | None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.output import create_output

        self._session: PromptSession[str] = PromptSession(
            history=_history(history),
            auto_suggest=AutoSuggestFromHistory(),
            completer=WordCompleter(sorted(commands), sentence=True),
            complete_while_typing=False,
            multiline=True,
            key_bindings=_keys(),
            prompt_continuation="  ",
            # Answers may go to a file while one types.
            output=create_output(always_prefer_tty=True),
        )

    def ask(self) -> str | None:
        """The next message; None for Ctrl-D."""
        before = signal.getsignal(signal.SIGTERM)
        try:
            return whole(self._session.prompt("> ", pre_run=self._hear_sigterm))
        except EOFError:
            return None
        finally:
            # A loop that has ended leaves it as no program has it.
            if signal.getsignal(signal.SIGTERM) != before:
                signal.signal(signal.SIGTERM, before)

    def _hear_sigterm(self) -> None:
        """Let the prompt's own loop hear it: raised in the middle of what is drawn, it would leave
        the terminal as that was."""
        app = self._session.app

        def end() -> None:
            interrupts.heard(signal.SIGTERM)
            if app.is_running and not app.is_done:
                app.exit(exception=KeyboardInterrupt())

        if callable(signal.getsignal(signal.SIGTERM)):
            with suppress(NotImplementedError):  # on Windows, where nobody sends it
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)


def _keys() -> Any:
    """Enter sends, unless more is to come; Alt-Enter begins a line."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    def send(event: Any) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    def begin_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    keys.add("enter")(send)
    keys.add("escape", "enter")(begin_line)
    return keys


def _history(path: Path | None) -> Any:
    """What was said before, in a file that nobody else reads."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        note(f"no history is kept: {path}: {error.strerror}")
        return InMemoryHistory()
    return FileHistory(str(path))


def history_path() -> Path:
    """Where the history of this user lies."""
    import platformdirs

    return Path(platformdirs.user_state_dir("mlx-spec")) / "chat_history"


def open_lines(commands: Iterable[str], keep: bool) -> Lines:
    """The keyboard where stdin is a terminal, else what is piped in."""
    if sys.stdin is None:
        return PipedLines(())
    if not sys.stdin.isatty():
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
        return PipedLines(sys.stdin)
    return Keyboard(commands, history_path() if keep else None)
