"""What a terminal can do: marks and lines that go away, where there is one.

A letter that a terminal or pipe does not take comes out as its escape (``\\u65e5``), which is
readable in a text and means the same inside JSON.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from typing import TextIO

from mlx_spec.errors import InvalidRequest

# Takes away the line that the cursor is in.
ERASE = "\r\x1b[2K"
BOLD, RED = 1, 31

_SUBSTITUTE = "mlx_spec.escape"
# All but line feeds and tabs; a terminal takes the second range for the same as escape sequences.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def take_every_letter() -> None:
    """From now on neither stdout nor stderr raises for a letter that its encoding lacks."""
    codecs.register_error(_SUBSTITUTE, _escape)
    for stream in (sys.stdout, sys.stderr):
        # A notebook's stream, or a test's, has no encoding to speak of.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_SUBSTITUTE)


def open_standard_files() -> None:
    """Open what of stdin, stdout and stderr was closed, on nothing.

    Else the next file gets its number: weights, which MLX then takes for not opened.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def need_stdout(command: str) -> None:
    """Refuse to work for nobody: whoever started the process may have closed its stdout.

    Raises:
        InvalidRequest: it is closed.
    """
    if sys.stdout is None:
        raise InvalidRequest(f"[{command}] stdout is closed, so that nobody would read the text")


def discard(stream: TextIO) -> None:
    """Let what a stream could not write go nowhere; it would be tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def marked(text: str, out: TextIO | None, code: int = BOLD) -> str:
    """``text`` in bold, or under another code of ECMA-48, where ``out`` is a terminal."""
    return f"\x1b[{code}m{text}\x1b[0m" if takes_marks(out) else text


def takes_marks(out: TextIO | None) -> bool:
    """Whether ``out`` is a terminal whose user lets programs colour it."""
    return out is not None and out.isatty() and not os.environ.get("NO_COLOR")


def harmless(text: str) -> str:
    """A text that somebody else wrote, for a terminal: its control codes are shown, not obeyed."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: UTF-16 units, as JSON writes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    escaped = "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
    return escaped, error.end
