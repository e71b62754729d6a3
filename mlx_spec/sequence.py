"""``Sequence``: the one record of a request, from submit to result.

The scheduler, the decoder, the text and the streams all read this record and none keeps a parallel
list beside it. It knows no tensors and imports no mlx. How it lives is written in ``life_cycle``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from mlx_spec.block_keys import chain_key
from mlx_spec.config import SamplingParams
from mlx_spec.drafting import DrafterStats
from mlx_spec.errors import IllegalTransition, InvalidRequest
from mlx_spec.life_cycle import LifeCycle, RequestState
from mlx_spec.results import GenerationChunk, GenerationResult, TokenLogprob

NO_END = 2**24  # tokens that nobody reaches


def seed_word(seed: int | None) -> int:
    """Fold a seed into the 64 bits that key the sampling noise; None draws a fresh one.

    A drawn seed has 53 bits, which every reader of JSON keeps.
    """
    if seed is None:
        return secrets.randbits(53)
    if seed < 2**64:
        return seed
    digest = blake2b(seed.to_bytes((seed.bit_length() + 7) // 8, "big"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


class Text(Protocol):
    """The text of one request as its tokens come; it may end the request (stop texts)."""

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found: nothing follows."""
        ...

    def add(self, token: int) -> str:
        """Take one token; return the text that it makes certain."""
        ...

    def finish(self) -> str:
        """No token follows; return what was held back."""
        ...


class Sink(Protocol):
    """Where the chunks of one request go."""

    def put(self, chunks: Seq[GenerationChunk], result: GenerationResult | None) -> None:
        """All chunks of one step; with a result, the request has ended and none follow."""
        ...

    def fail(self, error: BaseException) -> None:
        """No chunk follows, for this reason."""
        ...


@dataclass(frozen=True)
class DeadEnd:
    """Next tokens behind which a constraint lets none follow.

    Attributes:
        tokens: those; a row that says them fails there.
        why: in words.
    """

    tokens: tuple[int, ...]
    why: str

    def among(self, tokens: Seq[int]) -> bool:
        """Whether a row that says these tokens comes there."""
        return tuple(tokens[: len(self.tokens)]) == self.tokens


@dataclass(eq=False)
class Sequence(LifeCycle):
    """A request as everybody sees it. Identity, not value, makes two of them equal.

    Attributes:
        prompt: the prompt's token ids, at least one.
        sampling: how to choose tokens and when to stop.
        max_new_tokens: most tokens to emit: ``max_tokens``, or less where the context ends.
        stop_ids: tokens that finish the sequence.
        index: the request's place in the caller's list.
        tokens: the emitted tokens.
        texts: the text that each of them made certain; empty where ``text`` is None.
        logprobs: how likely each of them was, where that is asked for.
        prompt_logprobs: the same of the prompt's tokens from the second on, as far as it was read.
        drafted, accepted: draft tokens the target verified, and accepted.
        drafters: the same of each drafter, by name.
        steps: verify passes this sequence took part in.
        reused: prompt tokens whose K/V came from the prefix cache.
        read: prompt tokens that were in the target's cache at some time, from the first on.
        text: makes text of its tokens; None where a decoder is used alone.
        sink: takes its chunks; None where nobody does.
        guide: how far its text has come in its constraint (``structured.guide.Guide``, which this
            module must not know); None without one.
        prediction: what its text is likely to be (``decoding.drafters.predicted.PredictedText``,
            likewise); None where nobody said.
        doomed: why no token can follow, where a rule has found that: the row then fails.
        dead_end: where its guesses would lead it astray, known for one step; None elsewhere.
        spell: the text of one token alone; None where a decoder is used alone.
        evidence: what the draft-length policy learned of it; nobody else looks there.
        share: what it has in common with requests of the same prompt; None where there are none.
        border: tokens of its prompt that the next turn of the same talk begins with, too, where
            these end before the prompt does.
    """

    prompt: list[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    index: int = 0
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list, init=False)
    logprobs: list[TokenLogprob] = field(default_factory=list, init=False, repr=False)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list, init=False, repr=False)
    drafted: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)
    drafters: dict[str, DrafterStats] = field(default_factory=dict, init=False)
    steps: int = field(default=0, init=False)
    reused: int = field(default=0, init=False)
    read: int = field(default=0, init=False)
    text: Text | None = field(default=None, kw_only=True, repr=False)
    sink: Sink | None = field(default=None, kw_only=True, repr=False)
    guide: Any = field(default=None, kw_only=True, repr=False)
    prediction: Any = field(default=None, kw_only=True, repr=False)
    doomed: str | None = field(default=None, init=False, repr=False)
    dead_end: DeadEnd | None = field(default=None, init=False, repr=False)
    spell: Callable[[int], str] | None = field(default=None, kw_only=True, repr=False)
    evidence: Any = None  # control.row.RowEvidence, which this module must not know
    share: Any = None  # decoding.prompt_share.PromptShare: likewise
    border: int | None = None
    seed: int = field(init=False)
    _keys: dict[int, list[bytes]] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InvalidRequest("[Sequence] the prompt has no tokens, expected at least 1")
        self.max_new_tokens = self.max_new_tokens or self.sampling.max_tokens or NO_END
        self.seed = seed_word(self.sampling.seed)

    @property
    def length(self) -> int:
        """Known tokens: prompt and emitted. The KV cache holds one less (the pending token)."""
        return len(self.prompt) + len(self.tokens)

    def known(self, begin: int, end: int) -> list[int]:
        """The known tokens at positions ``begin .. end - 1``."""
        first = len(self.prompt)
        return self.prompt[begin:end] + self.tokens[max(0, begin - first) : max(0, end - first)]

    def block_keys(self, size: int) -> list[bytes]:
        """A key for each whole block of ``size`` of the cached tokens; each is hashed once."""
        keys = self._keys.setdefault(size, [])
        whole = (self.length - 1) // size
        del keys[whole:]  # a stop text may have cut tokens off
        for end in range((len(keys) + 1) * size, whole * size + 1, size):
            keys.append(chain_key(keys[-1] if keys else b"", self.known(end - size, end)))
        return keys

    @property
    def brings_guesses(self) -> bool:
        """Whether it brings guesses itself: what a constraint forces, or what was predicted."""
        return self.guide is not None or self.prediction is not None

    @property
    def open_end(self) -> bool:
        """Whether it may go on to the end of the context."""
        return self.sampling.max_tokens is None

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return self.max_new_tokens - len(self.tokens)

    @property
    def room(self) -> int:
        """The most draft tokens of its next step: one token is the target's own."""
        # Asked for each row at each step.
        most, wanted = self.max_new_tokens - len(self.tokens) - 1, self.sampling.num_draft_tokens
        if wanted is not None and wanted < most:
            return wanted
        return most if most > 0 else 0

    def ends(self, tokens: Seq[int]) -> bool:
        """Whether a stop token or the limit falls among these next tokens. Changes nothing."""
        astray = self.dead_end is not None and self.dead_end.among(tokens)
        return astray or len(tokens) >= self.remaining or not self.stop_ids.isdisjoint(tokens)

    def extend(self, tokens: Seq[int]) -> list[int]:
        """Append tokens up to the one that ends the sequence; return those taken.

        Every end is looked for *inside* the run (a stop token, the limit, a stop text), so a run
        of accepted draft tokens never carries a sequence past it, and what is counted afterwards
        is final. What the text raises fails this sequence alone, at the token before.
        """
        if tokens and self.state is not RequestState.RUNNING:
            raise IllegalTransition(
                f"[Sequence.extend] request {self.request_id!r} is {self.state.value} and gains "
                f"{len(tokens)} tokens"
            )
        astray = self.dead_end if self.dead_end and self.dead_end.among(tokens) else None
        taken: list[int] = []
        for token in tokens if astray is None else astray.tokens:
            self.tokens.append(token)
            stopped = token in self.stop_ids
            last = stopped or self.remaining <= 0
            if self.text is not None:
                try:
                    stopped |= self._say(self.text, token, last)
                except Exception as error:  # foreign code
                    self.tokens.pop()
                    self.fail(f"[TextStream] the text of token {token}: {error!r}")
                    break
            taken.append(token)
            if stopped or last:
                self.finish("stop" if stopped else "length")
                break
        if astray is not None and not self.ended:
            self.fail(astray.why)
        return taken

    def _say(self, text: Text, token: int, last: bool) -> bool:
        """Keep the text that the newest token makes certain; whether a stop text ends it there."""
        # A stop token ends the text and is no part of it.
        piece = "" if token in self.stop_ids else text.add(token)
        stopped = text.stopped
        if last or stopped:
            piece += text.finish()
        self.texts.append(piece)
        return stopped

    def count(self, drafted: int, accepted: int, source: str = "") -> None:
        """One verify pass more, of so many draft tokens of a drafter."""
        self.steps += 1
        self.drafted += drafted
        self.accepted += accepted
        if drafted:
            by = self.drafters.get(source, DrafterStats())
            self.drafters[source] = by.plus(drafted, accepted)
