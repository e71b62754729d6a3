"""``SamplingParams``: how one request's tokens are chosen, and when it ends."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from mlx_spec.config.checks import check_integer, check_number, plain_numbers
from mlx_spec.config.shaping import ShapingOptions
from mlx_spec.config.structure import StructureOptions
from mlx_spec.errors import InvalidRequest

MOST_LOGPROBS = 20  # as in OpenAI's chat API


@dataclass(frozen=True)
class SamplingParams(StructureOptions, ShapingOptions):
    """How one request's tokens are chosen and when it ends.

    The filters act as in mlx-lm, on untempered probabilities: top-p, min-p and top-k each keep
    an upper part of the ranking and a token must be kept by all of them. Among equally probable
    tokens the lower id ranks first. Options that change logits are in :class:`ShapingOptions`,
    the shape of the text in :class:`StructureOptions`.

    Attributes:
        max_tokens: most tokens to generate, >= 1. None, or -1 as mlx-lm has it: up to the end of
            the model's context (or of ``BatchingConfig.max_seq_len``), or of all memory for K/V.
        temperature: 0 is greedy; > 0 samples.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        top_k: keep the k most probable tokens; 0 keeps all.
        min_p: keep tokens at least this times as probable as the best one, in [0, 1].
        seed: the sample at each position depends on this and the position only, so a seed
            gives the same text alone or in any batch, with or without a draft. None draws one.
        stop: texts that end the generation, or one; they are not part of the output. Kept as a
            tuple.
        stop_token_ids: tokens that end it, or one, beside the tokenizer's end-of-sequence tokens.
            Kept as a tuple.
        ignore_eos: go on past end-of-sequence tokens (benchmarks).
        logprobs: give each token's log-probability, by the target's logits after biases, penalties
            and masks, before temperature and filters, as mlx-lm does.
        top_logprobs: and those of so many likeliest tokens, 0..20; asks for ``logprobs`` itself.
        prompt_logprobs: give the log-probabilities of the prompt's own tokens, too: its beginning
            is then read, whatever the prefix cache has of it.
        num_draft_tokens: most guesses that a step verifies for this request, >= 0; 0 is none. None:
            as many as the engine finds worth it (:class:`SpeculationConfig`). No token
            depends on it.

    Raises:
        InvalidRequest: a value outside its range.
    """

    max_tokens: int | None = 100
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Seq[str] | None = ()
    stop_token_ids: int | Seq[int] | None = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    num_draft_tokens: int | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        owner = "SamplingParams"
        if self.max_tokens == -1:
            object.__setattr__(self, "max_tokens", None)
        if self.max_tokens is not None:
            more = ", or -1: to the end of the context"
            check_integer(owner, "max_tokens", self.max_tokens, 1, more)
        check_number(owner, "temperature", self.temperature, 0.0, 100.0, "[0, 100]")
        check_number(owner, "top_p", self.top_p, 0.0, 1.0, "(0, 1]")
        check_integer(owner, "top_k", self.top_k, 0)
        check_number(owner, "min_p", self.min_p, 0.0, 1.0, "[0, 1]")
        if self.seed is not None:
            check_integer(owner, "seed", self.seed, 0)
        if self.num_draft_tokens is not None:
            check_integer(owner, "num_draft_tokens", self.num_draft_tokens, 0)
        check_integer(owner, "top_logprobs", self.top_logprobs, 0)
        if self.top_logprobs > MOST_LOGPROBS:
            raise InvalidRequest(
                f"[{owner}] top_logprobs={self.top_logprobs}, expected 0..{MOST_LOGPROBS}"
            )
        # A lone text or token, or None, is what people write for one stop, or for none.
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
            kept = tuple(value) if several else () if value is None else (value,)
            object.__setattr__(self, name, kept)
        for text in self.stop_texts:
            if not isinstance(text, str) or not text:
                raise InvalidRequest(f"[{owner}] stop={text!r}, expected non-empty texts")
        for token in self.stop_ids:
            check_integer(owner, "stop_token_ids", token, 0)
        self.check_shaping()
        self.keep_structure()
        if self.structure is not None and self.ignore_eos:
            raise InvalidRequest(f"[{owner}] ignore_eos goes on past the end that a structure has")

    @property
    def wants_logprobs(self) -> bool:
        """Whether those of generated tokens are asked for."""
        return self.logprobs or self.top_logprobs > 0

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """``stop``, as the tuple that it is kept as."""
        return self.stop  # type: ignore[return-value]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``stop_token_ids``, as the tuple that it is kept as."""
        return self.stop_token_ids  # type: ignore[return-value]
