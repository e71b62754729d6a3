"""Keys of a text's blocks: a hash over the tokens of a block and the key of the block before it.

Equal keys mean equal beginnings, whoever hashed them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from hashlib import blake2b


def chain_key(before: bytes, block: Seq[int]) -> bytes:
    """The key of a block behind the one whose key is ``before`` (empty for the first)."""
    return blake2b(before + array("q", block).tobytes(), digest_size=16).digest()


def block_keys(tokens: Seq[int], size: int) -> list[bytes]:
    """One key for each whole block of ``tokens``."""
    keys: list[bytes] = []
    for end in range(size, len(tokens) + 1, size):
        keys.append(chain_key(keys[-1] if keys else b"", tokens[end - size : end]))
    return keys
