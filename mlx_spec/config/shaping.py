"""What is done to a request's logits before its tokens are chosen, as options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mlx_spec.config.checks import check_integer, check_number
from mlx_spec.errors import InvalidRequest

OWNER = "SamplingParams"
LogitBias: TypeAlias = Mapping[int, float] | Mapping[str, float] | Iterable[tuple[int, float]]

_CHOOSING = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "xtc_probability": 0}


@dataclass(frozen=True, kw_only=True)
class ShapingOptions:
    """Options of :class:`SamplingParams` that change logits, as mlx-lm's processors do.

    They see a row's prompt and output, up to the position whose token is chosen; with a draft,
    what stands before that position of it. The order is: bias, repetition, presence, frequency,
    ``logits_processors``; then come the filters.

    Attributes:
        min_tokens_to_keep: most probable tokens that ``min_p`` never takes away, >= 1.
        xtc_probability: how often XTC ("exclude top choices") takes away all tokens of at least
            ``xtc_threshold`` but the least probable of these; 0 is off. A coin for each position
            decides, which depends on seed and position alone.
        xtc_threshold: a probability, among what top-p and min-p leave, in [0, 0.5].
        xtc_special_tokens: tokens that XTC leaves alone. None: the tokenizer's end-of-sequence
            tokens and line break, as for mlx-lm's commands.
        repetition_penalty: logits of tokens among the last ``repetition_context_size`` are divided
            by it where positive, else multiplied. 1 changes nothing, 0 is off.
        presence_penalty: taken from logits of tokens among the last ``presence_context_size``.
        frequency_penalty: the same, for each time that a token stands there.
        repetition_context_size, presence_context_size, frequency_context_size: tokens of prompt
            and output that are looked at, the last ones; 0: all of them.
        logit_bias: token id to a number that is added to its logit; -inf forbids it. Ids may be
            texts, as in OpenAI's JSON. Kept as pairs.
        min_tokens: no token that ends the text before so many are said. A stop *text* may.
        logits_processors: functions ``f(tokens, logits)`` of the tokens so far [T] and logits
            [1, V], which return logits [1, V], as for mlx-lm. They must be functions of what they
            are given: with a draft they are asked about positions that may never come.
        sampler: a function of log-probabilities [1, V] that returns the token [1], in the place of
            temperature and filters; the same holds for it.
    """

    min_tokens_to_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    xtc_special_tokens: int | Seq[int] | None = None
    repetition_penalty: float = 0.0
    repetition_context_size: int = 20
    presence_penalty: float = 0.0
    presence_context_size: int = 20
    frequency_penalty: float = 0.0
    frequency_context_size: int = 20
    logit_bias: LogitBias | None = None
    min_tokens: int = 0
    # Functions are no data: two requests are equal without them.
    logits_processors: Seq[Callable[..., Any]] | None = field(default=(), compare=False, repr=False)
    sampler: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def check_shaping(self) -> None:
        """Refuse what makes no sense, and bring lists and mappings into one form.

        Raises:
            InvalidRequest: a value outside its range, or two that contradict each other.
        """
        check_integer(OWNER, "min_tokens_to_keep", self.min_tokens_to_keep, 1)
        check_number(OWNER, "xtc_probability", self.xtc_probability, 0.0, 1.0, "[0, 1]")
        check_number(OWNER, "xtc_threshold", self.xtc_threshold, 0.0, 0.5, "[0, 0.5]")
        check_number(OWNER, "repetition_penalty", self.repetition_penalty, 0.0, 100.0, "[0, 100]")
        for name in ("presence", "frequency"):
            penalty = f"{name}_penalty"
            check_number(OWNER, penalty, getattr(self, penalty), -100.0, 100.0, "[-100, 100]")
        for name in ("repetition", "presence", "frequency"):
            size = f"{name}_context_size"
            check_integer(OWNER, size, getattr(self, size), 0)
        check_integer(OWNER, "min_tokens", self.min_tokens, 0)
        limit = getattr(self, "max_tokens", None)
        if limit is not None and self.min_tokens > limit:
            raise InvalidRequest(f"[{OWNER}] min_tokens={self.min_tokens}, max_tokens={limit}")
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        if self.xtc_special_tokens is not None:
            given = self.xtc_special_tokens
            tokens = tuple(given) if isinstance(given, Iterable) else (given,)
            for token in tokens:
                check_integer(OWNER, "xtc_special_tokens", token, 0)
            object.__setattr__(self, "xtc_special_tokens", tokens)
        self._check_functions()

    def _check_functions(self) -> None:
        given = self.logits_processors
        functions = (given,) if callable(given) else tuple(given or ())
        object.__setattr__(self, "logits_processors", functions)
        for function in (*functions, *([] if self.sampler is None else [self.sampler])):
            if not callable(function):
                raise InvalidRequest(f"[{OWNER}] {function!r} is no function of logits")
        if self.sampler is not None:
            for name, off in _CHOOSING.items():
                if getattr(self, name, off) != off:
                    raise InvalidRequest(
                        f"[{OWNER}] sampler chooses tokens itself: {name}="
                        f"{getattr(self, name)} would not count"
                    )

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """``logit_bias``, as the pairs that it is kept as."""
        return self.logit_bias  # type: ignore[return-value]

    @property
    def special_tokens(self) -> tuple[int, ...]:
        """``xtc_special_tokens``, as the tuple that it is kept as; none where it is None."""
        return self.xtc_special_tokens or ()  # type: ignore[return-value]

    @property
    def processors(self) -> tuple[Callable[..., Any], ...]:
        """``logits_processors``, as the tuple that it is kept as."""
        return self.logits_processors  # type: ignore[return-value]


def _pairs(given: LogitBias | None) -> tuple[tuple[int, float], ...]:
    """Pairs of token id and bias, by id."""
    try:
        pairs = [] if given is None else list(getattr(given, "items", lambda: given)())
        found = {_id(token): float(bias) for token, bias in pairs}
    except (TypeError, ValueError):
        raise InvalidRequest(
            f"[{OWNER}] logit_bias={str(given)[:60]}, expected token ids and numbers: "
            "{50256: -100}"
        ) from None
    if len(found) < len(pairs):
        raise InvalidRequest(f"[{OWNER}] logit_bias names a token twice")
    for token, bias in found.items():
        check_integer(OWNER, "a token id of logit_bias", token, 0)
        if math.isnan(bias) or bias > 1e4:
            raise InvalidRequest(
                f"[{OWNER}] logit_bias of token {token} is {bias}, expected at most 10000"
            )
    return tuple(sorted(found.items()))


def _id(token: Any) -> int:
    if isinstance(token, (bool, float)):
        raise TypeError
    return int(token)
