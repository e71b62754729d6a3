"""The one record of a running request: its tokens, its options, its counters.

The scheduler, the decoder and the text layer all read this record and none keeps a parallel list
beside it. It knows no tensors and imports no mlx.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.config import SamplingParams
from mlx_spec.errors import InvalidRequest
from mlx_spec.results import FinishReason


def seed_word(seed: int | None) -> int:
    """Fold a seed into the 64 bits that key the sampling noise; None draws a fresh one.

    A drawn seed has 53 bits, which every reader of JSON keeps.
    """
    if seed is None:
        return secrets.randbits(53)
    if seed < 2**64:
        return seed
    digest = hashlib.blake2b(seed.to_bytes((seed.bit_length() + 7) // 8, "big"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


@dataclass(eq=False)
class Sequence:
    """A request as the engine sees it. Identity, not value, makes two of them equal.

    Attributes:
        prompt: the prompt's token ids, at least one.
        sampling: how to choose tokens and when to stop.
        max_new_tokens: most tokens to emit: ``max_tokens``, or less where the context ends.
        stop_ids: tokens that finish the sequence.
        index: the request's place in the caller's list.
        tokens: the emitted tokens.
        finish_reason: None while running.
        error: why it failed, where that is how it ended.
        drafted, accepted: draft tokens the target verified, and accepted.
        steps: verify passes this sequence took part in.
        reused: prompt tokens whose K/V came from the prefix cache.
        read: prompt tokens that were in the target's cache at some time, from the first on.
        evidence: what the draft-length policy learned of it; nobody else looks there.
    """

    prompt: list[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    index: int = 0
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    reused: int = 0
    read: int = 0
    evidence: Any = None  # control.row.RowEvidence, which this module must not know
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InvalidRequest("[Sequence] the prompt has no tokens, expected at least 1")
        self.max_new_tokens = self.max_new_tokens or self.sampling.max_tokens
        self.seed = seed_word(self.sampling.seed)

    @property
    def length(self) -> int:
        """Known tokens: prompt and emitted. The KV cache holds one less (the pending token)."""
        return len(self.prompt) + len(self.tokens)

    @property
    def cached_tokens(self) -> list[int]:
        """The tokens whose K/V the target's cache holds: all known ones but the pending last."""
        return (self.prompt + self.tokens)[:-1]

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return self.max_new_tokens - len(self.tokens)

    def ends(self, tokens: list[int]) -> bool:
        """Whether these next tokens bring it to a stop token or the limit; nothing changes."""
        return len(tokens) >= self.remaining or not self.stop_ids.isdisjoint(tokens)

    def extend(self, tokens: list[int]) -> list[int]:
        """Append tokens up to the first stop token or the limit; return those taken.

        Both ends are looked for *inside* the run, so a run of accepted draft tokens never
        carries a sequence past its end.
        """
        taken: list[int] = []
        for token in tokens:
            taken.append(token)
            self.tokens.append(token)
            if token in self.stop_ids:
                self.finish_reason = "stop"
                break
            if self.remaining <= 0:
                self.finish_reason = "length"
                break
        return taken

    def cut(self, length: int) -> None:
        """Keep the first ``length`` emitted tokens and finish: a stop text ended there."""
        del self.tokens[length:]
        self.finish_reason = "stop"

    def fail(self, error: str, length: int | None = None) -> None:
        """End it alone, for this reason; keep the first ``length`` emitted tokens (None: all)."""
        del self.tokens[len(self.tokens) if length is None else length :]
        self.finish_reason, self.error = "error", error
