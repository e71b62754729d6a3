"""``ChatFlags``: the options of all commands, with the defaults of a talk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlx_spec.pipeline.flags import Flags

# Bytes; the engine takes no more than its share of the memory that there is.
KEPT_BYTES = 2**32
# Whom one talks to where nobody is named: the toys can only go on with Python.
MODEL, DRAFT = "smollm2", "ngram+head"


def _default(name: str, value: Any, **about: Any) -> Any:
    """The option of this name with another default."""
    metadata = {**Flags.__dataclass_fields__[name].metadata, **about}
    return field(default=value, metadata=metadata)


@dataclass(frozen=True)
class ChatFlags(Flags):
    """As ``Flags``: answers end where the model ends them, and the whole conversation is kept."""

    model: str | None = _default(
        "model",
        None,
        help="Folder, .gguf file, hub id (org/name, org/name:Q4_K_M) or smollm2, which with its "
        "drafts is also who answers where none is named.",
    )
    max_tokens: int | None = _default("max_tokens", -1)
    prefix_cache_bytes: int = _default("prefix_cache_bytes", KEPT_BYTES)
    batching: bool = _default("batching", False)  # one answer at a time

    def __post_init__(self) -> None:
        if self.model is None:
            object.__setattr__(self, "model", MODEL)
            alone = self.draft is None and self.draft_model is None
            if alone and self.enable_speculative is None:
                object.__setattr__(self, "draft", DRAFT)
        super().__post_init__()
