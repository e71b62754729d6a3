"""A model's vocabulary as llguidance knows it: the bytes of each token, and which end a text."""

from __future__ import annotations

import importlib.util
import threading
import weakref
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.structured.spelling import SpelledTokens
from mlx_spec.token_bytes import reader_of

# An adapter takes half a second to make for 50,000 tokens.
_MADE: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def available() -> bool:
    """Whether constraints can be used here."""
    return importlib.util.find_spec("llguidance") is not None


def library() -> Any:
    """llguidance.

    Raises:
        InvalidRequest: it is not installed, and how to.
    """
    try:
        import llguidance
    except ImportError as error:
        raise InvalidRequest(
            '[structure] constraints need llguidance: pip install "mlx-spec[structured]"'
        ) from error
    return llguidance


def vocabulary_of(tokenizer: Any) -> Any:
    """The ``LLTokenizer`` of a tokenizer as ``load`` returns it; made once.

    It has the tokenizer's own size: a model may be padded to more tokens, or have fewer.

    Raises:
        InvalidRequest: none can be made, and why not.
    """
    with _LOCK:
        try:
            if tokenizer not in _MADE:
                _MADE[tokenizer] = _make(tokenizer)
            return _MADE[tokenizer]
        except TypeError:  # no hash, or no weak references
            return _make(tokenizer)


def _make(tokenizer: Any) -> Any:
    ends = sorted(token for token in tokenizer.eos_token_ids if token is not None)
    if not ends:
        raise InvalidRequest(
            "[structure] the tokenizer has no end-of-sequence token, so that a constrained text "
            "could not end"
        )
    # The one that the tokenizer names comes first: it is guessed where a text must end.
    named = getattr(tokenizer, "eos_token_id", None)
    ends.sort(key=lambda token: token != named)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        source = backend.to_str() if backend else TokenTable(tokenizer)
        # Slices of the vocabulary speed up masks, for which this first one is not asked.
        known = library().LLTokenizer(source, eos_token=ends, slices=[])
        return library().LLTokenizer(SpelledTokens(known), eos_token=ends)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRequest(f"[structure] no constraints with this tokenizer: {reason}") from error


class TokenTable:
    """A tokenizer that is written in Python, as llguidance takes them: the bytes of each token.

    Args:
        tokenizer: with ``get_vocab``, ``encode`` and ``all_special_ids``, as transformers'.

    Raises:
        InvalidRequest: its tokens' bytes are not known.
    """

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if not hasattr(tokenizer, "get_vocab"):
            raise InvalidRequest(
                f"[structure] a {type(tokenizer).__name__} tells no bytes of its tokens, which "
                "constraints need"
            )
        vocabulary: dict[Any, int] = tokenizer.get_vocab()
        texts = {token: number for token, number in vocabulary.items() if isinstance(token, str)}
        read = reader_of(texts)
        self.tokens = [b""] * (1 + max(vocabulary.values()))
        for token, number in vocabulary.items():
            self.tokens[number] = token if isinstance(token, bytes) else read(token)
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        special = {number for number, token in added.items() if token.special}
        self.special_token_ids = sorted(special | set(tokenizer.all_special_ids))
        self.bos_token_id = getattr(tokenizer, "bos_token_id", None)
        self.eos_token_id = tokenizer.eos_token_id
        self._check()

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of a text."""
        text = text if isinstance(text, str) else text.decode(errors="replace")
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _check(self) -> None:
        """Whether a text's tokens are its bytes, which the names of tokens need not say."""
        text = "a, b: cd"
        said = b"".join(self.tokens[token] for token in self(text))
        if said.lstrip() != text.encode():
            raise InvalidRequest(
                f"[structure] the bytes of this {type(self._tokenizer).__name__}'s tokens are not "
                f"known: those of {text!r} make {said!r}"
            )
