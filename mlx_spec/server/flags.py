"""``ServeFlags``: the options that all commands take, with the defaults that a server needs."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from mlx_spec.pipeline.flags import HEADS, Flags

_SAME: Any = object()


def _as_of(name: str, default: Any = _SAME, *names: str) -> Any:
    """An option of ``Flags`` with another default, or with names of mlx-lm's server, too."""
    known = {one.name: one for one in fields(Flags)}[name]
    assert known.default is not MISSING
    default = known.default if default is _SAME else default
    metadata = {**known.metadata, "names": (*known.metadata["names"], *names)}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ServeFlags(Flags):
    """As ``Flags``, but that it drafts unless told otherwise, and starts each request at once.

    Without a draft model guesses are n-grams of the text, and the head that belongs to the model
    where one is embedded; the adaptive length parks what does not pay.
    """

    # As mlx-lm's server.
    max_tokens: int | None = _as_of("max_tokens", 512)
    enable_speculative: bool | None = _as_of("enable_speculative", True)
    # Requests join at any step: nobody gains by waiting for company.
    batch_timeout: float = _as_of("batch_timeout", 0.0)
    # Turns of conversations: some thousands of tokens of a model of 8B. The engine keeps it within
    # a quarter of what the models leave, so that a Mac of 16 GB has room for rows.
    prefix_cache_bytes: int = _as_of("prefix_cache_bytes", 2**30, "--prompt-cache-bytes")
    batch_size: int = _as_of("batch_size", _SAME, "--decode-concurrency")
    chat_template_config: str | None = _as_of("chat_template_config", _SAME, "--chat-template-args")

    def __post_init__(self) -> None:
        undecided = self.draft is None and self.draft_model is None
        if undecided and self.enable_speculative and self.model in HEADS:
            object.__setattr__(self, "draft", "ngram+head")
        super().__post_init__()
