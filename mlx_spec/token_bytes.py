"""What tokens stand for, as bytes: so that vocabularies of different kinds can be compared.

Byte-level vocabularies (GPT-2, Llama 3, Qwen) write each byte as a stand-in letter, others (Llama
2, Mistral, Gemma) a blank as ``▁`` and single bytes as ``<0xE4>``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _letters() -> dict[str, int]:
    """GPT-2's stand-in letters: printable bytes for themselves, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    plain = {chr(byte): byte for byte in printable}
    return plain | {chr(256 + place): byte for place, byte in enumerate(others)}


LETTERS = _letters()


def same_tokens(target: Mapping[str, int], draft: Mapping[str, int]) -> dict[str, int]:
    """For each token of the target that the draft has too, the draft's id of it."""
    read, read_draft = reader_of(target), reader_of(draft)
    if read is read_draft:
        return {token: draft[token] for token in target if token in draft}
    known: dict[bytes, int] = {}
    for token in sorted(draft, key=lambda token: _BYTE.fullmatch(token) is not None):
        known.setdefault(read_draft(token), draft[token])  # text before a byte that is the same
    found = {token: known.get(read(token)) for token in target}
    return {token: number for token, number in found.items() if number is not None}


def reader_of(vocabulary: Mapping[str, int]) -> Callable[[str], bytes]:
    """What tells the bytes of this vocabulary's tokens."""
    if any(token.startswith("▁") for token in vocabulary):
        return _with_marks
    letters = any(token.startswith("Ġ") for token in vocabulary)
    return _in_letters if letters or LETTERS.keys() <= vocabulary.keys() else str.encode


def _with_marks(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _in_letters(token: str) -> bytes:
    values = [LETTERS.get(letter) for letter in token]
    return token.encode() if None in values else bytes(values)  # type: ignore[arg-type]
