"""Text files as editors, spreadsheets and shells write them: UTF-8 or UTF-16, with a mark or not.

A byte order mark says how a file is encoded and is no part of its text. Whoever reads text that a
user wrote reads it here. Imports nothing but errors; may be imported by all.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlx_spec.errors import InvalidRequest

# The longer marks first: UTF-32's begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)


def read_text(path: Path, what: str) -> str:
    """A whole text file, without its byte order mark; line ends stay as they are.

    Args:
        path: the file; ``~`` is the user's folder.
        what: begins every error, e.g. ``[config] run.toml``.

    Raises:
        InvalidRequest: it cannot be read, or is not in the encoding that it says (UTF-8 if it
            says none).
    """
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{what}: {error.strerror}") from error
    return decode(data, what)


def decode(data: bytes, what: str) -> str:
    """The text of bytes; see :func:`read_text`."""
    encoding, name = encoding_of(data[:4], what)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what}: not valid {name}, at byte {error.start + 1}") from error


def encoding_of(start: bytes, what: str) -> tuple[str, str]:
    """Python's name of the encoding that a file's first bytes tell, and the user's name of it.

    Raises:
        InvalidRequest: they are of UTF-16 or UTF-32 without a mark, which nothing tells apart
            for sure.
    """
    for mark, encoding, name in _MARKS:
        if start.startswith(mark):
            return encoding, name
    if b"\0" in start:
        raise InvalidRequest(
            f"{what}: UTF-16 or UTF-32 without a byte order mark, or no text at all; "
            "save it as UTF-8"
        )
    return "utf-8", "UTF-8"


def utf8_lines(blocks: Iterable[bytes], what: str) -> Iterator[bytes]:
    r"""Lines of a file, each with its ``\n``, in UTF-8, without the file's mark.

    Bytes of a UTF-8 file pass unchecked, so that a bad one spoils its own line only.

    Args:
        blocks: an open binary file, which gives blocks that end with ``\n``.
        what: begins every error.

    Raises:
        InvalidRequest: a file in UTF-16 or UTF-32 that is broken, or has no mark.
    """
    blocks = iter(blocks)
    first = next(blocks, b"")
    encoding, name = encoding_of(first[:4], what)
    if encoding == "utf-8-sig":
        first = first.removeprefix(codecs.BOM_UTF8)
    if encoding.startswith("utf-8"):
        yield from filter(None, _chain(first, blocks))
        return
    decoder, kept = codecs.getincrementaldecoder(encoding)(), ""
    try:
        for block in _chain(first, blocks):
            *whole, kept = (kept + decoder.decode(block)).split("\n")
            for line in whole:
                yield f"{line}\n".encode("utf-8", "surrogatepass")
        kept += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what}: not valid {name} ({error.reason})") from error
    if kept:
        yield kept.encode("utf-8", "surrogatepass")


def split_returns(lines: Iterable[bytes]) -> Iterator[bytes]:
    r"""The same lines, cut at a lone ``\r`` too, as old programs end them."""
    for line in lines:
        # Of bytes, and only of bytes, python knows no line ends beside these.
        yield from line.splitlines(keepends=True)


def _chain(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
