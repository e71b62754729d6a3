"""Where the command line's prompts come from: options, stdin and a file of lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_spec.errors import InvalidRequest

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
        prompts += [line for line in _read_file(file).splitlines() if line.strip()]
        if not prompts:
            raise InvalidRequest(f"[generate] --prompt-file {file}: no prompts in it")
    prompts = prompts if options or file is not None else [default]
    for number, prompt in enumerate(prompts, start=1):
        _check(prompt, "the prompt" if len(prompts) == 1 else f"prompt {number} of {len(prompts)}")
    return prompts


def _check(prompt: str, name: str) -> None:
    """Refuse a prompt that holds nothing or is not text."""
    if not prompt:
        raise InvalidRequest(f"[generate] {name} is empty")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:  # the shell's bytes that were no UTF-8
        raise InvalidRequest(f"[generate] {name} is not valid UTF-8") from error


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidRequest("[generate] the prompt on stdin is not valid UTF-8") from error


def _read_file(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"[generate] --prompt-file {path} is not valid UTF-8") from error
    except OSError as error:
        raise InvalidRequest(f"[generate] --prompt-file {path}: {error.strerror}") from error
