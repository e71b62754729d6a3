"""What the command writes when a terminal or pipe does not take every letter.

Such a letter comes out as its escape (``\\u65e5``), which is readable in a text and means the same
inside JSON.
"""

from __future__ import annotations

import codecs
import sys

_SUBSTITUTE = "mlx_spec.escape"


def take_every_letter() -> None:
    """From now on neither stdout nor stderr raises for a letter that its encoding lacks."""
    codecs.register_error(_SUBSTITUTE, _escape)
    for stream in (sys.stdout, sys.stderr):
        # A notebook's stream, or a test's, has no encoding to speak of.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_SUBSTITUTE)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: UTF-16 units, as JSON writes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    escaped = "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
    return escaped, error.end
