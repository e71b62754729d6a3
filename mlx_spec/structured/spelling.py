"""``SpelledTokens``: the tokens of a text that say every byte of it.

Where a grammar leaves one text, llguidance asks the tokenizer for its tokens and allows no others.
A tokenizer that finds ``<think>`` in a text says one token, which stands for no text and which the
grammar then refuses; one that writes texts in lower case says other bytes. Both would end a row
whose text can well be written.
"""

from __future__ import annotations

from typing import Any


class SpelledTokens:
    """A vocabulary as llguidance takes them, whose reading of texts is checked and mended.

    Args:
        known: an ``LLTokenizer`` of the same tokens, which reads as their tokenizer does.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, known: Any) -> None:
        self._known = known
        numbers = range(known.vocab_size)
        self.eos_token_id = known.eos_token
        self.special_token_ids = [n for n in numbers if known.is_special_token(n)]
        self._marks = frozenset(self.special_token_ids)
        # A token without bytes is written as its number.
        said = [known.decode_bytes([n]) for n in numbers]
        self.tokens = [b"" if one == b"<[%d]>" % n else one for n, one in enumerate(said)]

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens whose bytes are ``text``; of its beginning, where the vocabulary lacks a byte."""
        text = text if isinstance(text, str) else text.decode(errors="replace")
        wanted = text.encode()
        found: list[int] = self._known.tokenize_str(text)
        for tokens in (found, self._spelled(found)):
            if self._marks.isdisjoint(tokens) and self._bytes(tokens) == wanted:
                return tokens
        return self._beginning(self._known.greedy_tokenize(text), wanted)

    def _spelled(self, tokens: list[int]) -> list[int]:
        """The same with marks as text."""
        return [
            one
            for token in tokens
            for one in (
                self._known.greedy_tokenize(self._known.decode_str([token]))
                if token in self._marks
                else [token]
            )
        ]

    def _beginning(self, tokens: list[int], wanted: bytes) -> list[int]:
        """As many of them as say what is wanted."""
        while not wanted.startswith(self._bytes(tokens)):
            tokens.pop()
        return tokens

    def _bytes(self, tokens: list[int]) -> bytes:
        return b"".join(self.tokens[token] for token in tokens)
