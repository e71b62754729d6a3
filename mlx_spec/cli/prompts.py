"""Where the command line's prompts come from: options, stdin and a file of lines."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_spec.cli.notes import note
from mlx_spec.errors import InvalidRequest
from mlx_spec.text_files import decode, read_text

# mlx-lm's default, and one that suits the embedded models, which know Python only.
DEFAULT_PROMPT = "hello"
DEMO_PROMPT = "def parse_header("
# Seconds after which somebody who waits for a prompt is told so.
_PATIENCE = 1.0


def read_prompts(options: Sequence[str], file: Path | None) -> list[str]:
    """The prompts in order: ``--prompt`` as given (``-`` is stdin), then the file's lines.

    Where neither is given and something is piped in, that is the prompt. Empty if there is none.

    Raises:
        InvalidRequest: an unreadable source, text that is not UTF-8, or an empty prompt.
    """
    if list(options).count("-") > 1:
        raise InvalidRequest("[generate] --prompt - given twice; stdin can be read once")
    prompts = [_read_stdin() if text == "-" else text for text in options]
    if file is not None:
        prompts += _lines(read_text(file, f"[generate] --prompt-file {file}"))
        if not prompts:
            raise InvalidRequest(f"[generate] --prompt-file {file}: no prompts in it")
    if not options and file is None and is_piped():
        piped = _read_stdin()
        prompts = [piped] if piped.strip() else []
    one = len(prompts) == 1
    return [
        _check(prompt, "the prompt" if one else f"prompt {number} of {len(prompts)}")
        for number, prompt in enumerate(prompts, start=1)
    ]


def is_piped() -> bool:
    """Whether stdin is a pipe or a file: not a terminal, not /dev/null, not closed."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # none, no real file, closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _check(prompt: str, name: str) -> str:
    """Refuse a prompt that holds nothing or is not text."""
    if not prompt:
        raise InvalidRequest(f"[generate] {name} is empty")
    try:
        # In a locale without Unicode an argument's letters arrive as bytes in disguise.
        return os.fsencode(prompt).decode("utf-8") if _disguised(prompt) else prompt
    except UnicodeError as error:  # the shell's bytes that were no UTF-8
        raise InvalidRequest(f"[generate] {name} is not valid UTF-8") from error


def _disguised(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _read_stdin() -> str:
    if sys.stdin is None:  # closed by whoever started the process
        raise InvalidRequest("[generate] stdin is closed; give the prompt with --prompt")
    _tell_who_waits()
    # Its bytes: the locale does not say how a piped text is encoded. (A notebook's has none.)
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        return sys.stdin.read()
    text = decode(buffer.read(), "[generate] the prompt on stdin")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _tell_who_waits() -> None:
    """A pipe that stays open and silent looks like a hang: say what is waited for."""
    try:
        ready = select.select([sys.stdin], [], [], _PATIENCE)[0]
    except (OSError, ValueError):  # no real file
        return
    if not ready:
        note("reading the prompt from stdin; -p gives one instead")


def _lines(text: str) -> list[str]:
    """Prompts of a file, one a line; only a line end is one, no form feed or U+2028."""
    text = text.replace("\r\n", "\n")
    lines = text.split("\n" if "\n" in text else "\r")
    return [line for line in lines if line.strip()]
