"""Where the command line's prompts come from: options, stdin and a file of lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_spec.errors import InvalidRequest
from mlx_spec.text_files import decode, read_text

# mlx-lm's default, and one that suits the embedded models, which know Python only.
DEFAULT_PROMPT = "hello"
DEMO_PROMPT = "def read_"


def read_prompts(options: Sequence[str], file: Path | None, default: str) -> list[str]:
    """The prompts in order: ``--prompt`` as given (``-`` is stdin), then the file's lines.

    Raises:
        InvalidRequest: an unreadable source, text that is not UTF-8, an empty prompt, or none.
    """
    if list(options).count("-") > 1:
        raise InvalidRequest("[generate] --prompt - given twice; stdin can be read once")
    prompts = [_read_stdin() if text == "-" else text for text in options]
    if file is not None:
        prompts += _lines(read_text(file, f"[generate] --prompt-file {file}"))
        if not prompts:
            raise InvalidRequest(f"[generate] --prompt-file {file}: no prompts in it")
    prompts = prompts if options or file is not None else [default]
    one = len(prompts) == 1
    return [
        _check(prompt, "the prompt" if one else f"prompt {number} of {len(prompts)}")
        for number, prompt in enumerate(prompts, start=1)
    ]


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
    # Its bytes: the locale does not say how a piped text is encoded. (A notebook's has none.)
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        return sys.stdin.read()
    return decode(buffer.read(), "[generate] the prompt on stdin")


def _lines(text: str) -> list[str]:
    """Prompts of a file, one a line; only a line end is one, no form feed or U+2028."""
    text = text.replace("\r\n", "\n")
    lines = text.split("\n" if "\n" in text else "\r")
    return [line for line in lines if line.strip()]
