"""Keys of a text's blocks: a hash over the tokens of a block and the key of the block before it.

Equal keys mean equal beginnings, whoever hashed them. A beginning that ends within a block has a
key too, made of what it has of that block.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
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


@dataclass(frozen=True)
class TextKeys:
    """Keys of a text's beginnings, of whatever length.

    Attributes:
        blocks: one for each whole block.
        size: tokens of a block.
        length: tokens of the text.
        known: those at positions ``begin .. end - 1``.
    """

    blocks: Seq[bytes]
    size: int
    length: int
    known: Callable[[int, int], Seq[int]]

    def before(self, block: int) -> bytes:
        """The key of what comes before a block; empty for the first."""
        return self.blocks[block - 1] if block else b""

    def at(self, end: int) -> bytes:
        """The key of the first ``end`` tokens."""
        block, rest = divmod(end, self.size)
        before = self.before(block)
        return chain_key(before, self.known(end - rest, end)) if rest else before

    def until(self, length: int) -> TextKeys:
        """The same of its first tokens."""
        return TextKeys(self.blocks[: length // self.size], self.size, length, self.known)
