"""A model's vocabulary as llguidance knows it: the bytes of each token, and which end a text."""

from __future__ import annotations

import importlib.util
import threading
import weakref
from typing import Any

from mlx_spec.errors import InvalidRequest

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
    if not backend:
        raise InvalidRequest(
            f"[structure] a {type(tokenizer).__name__} without a fast tokenizer (tokenizer.json) "
            "tells no bytes of its tokens, which constraints need"
        )
    try:
        return library().LLTokenizer(backend.to_str(), eos_token=ends)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRequest(f"[structure] no constraints with this tokenizer: {reason}") from error
