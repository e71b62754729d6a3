"""``SamplingParams``: how one request's tokens are chosen, and when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from mlx_spec.config.checks import check_integer, check_number, plain_numbers
from mlx_spec.config.structure import Structure
from mlx_spec.errors import InvalidRequest


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen and when it ends.

    The filters act as in mlx-lm, on untempered probabilities: top-p, min-p and top-k each keep
    an upper part of the ranking and a token must be kept by all of them. Among equally probable
    tokens the lower id ranks first.

    Attributes:
        max_tokens: most tokens to generate, >= 1.
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
        structure: what the text must be: JSON by a schema, a regex, one of some choices, or a
            grammar. It ends where that is whole, or by ``max_tokens`` in the middle of it
            (``finish_reason`` ``"length"``).
        response_format: the same as OpenAI's interface writes it, ``{"type": "json_object"}`` or
            ``{"type": "json_schema", "json_schema": {"schema": ...}}``; kept as ``structure``,
            whose place it takes.

    Raises:
        InvalidRequest: a value outside its range.
    """

    max_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Seq[str] | None = ()
    stop_token_ids: int | Seq[int] | None = ()
    ignore_eos: bool = False
    structure: Structure | None = None
    response_format: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        owner = "SamplingParams"
        check_integer(owner, "max_tokens", self.max_tokens, 1)
        check_number(owner, "temperature", self.temperature, 0.0, 100.0, "[0, 100]")
        check_number(owner, "top_p", self.top_p, 0.0, 1.0, "(0, 1]")
        check_integer(owner, "top_k", self.top_k, 0)
        check_number(owner, "min_p", self.min_p, 0.0, 1.0, "[0, 1]")
        if self.seed is not None:
            check_integer(owner, "seed", self.seed, 0)
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
        self._keep_structure(owner)

    def _keep_structure(self, owner: str) -> None:
        if self.response_format is not None:
            object.__setattr__(self, "structure", Structure.of(self.response_format))
            object.__setattr__(self, "response_format", None)
        if self.structure is None:
            return
        if not isinstance(self.structure, Structure):
            raise InvalidRequest(
                f"[{owner}] structure={str(self.structure)[:60]}, expected a Structure: "
                "Structure.json_schema({...}), .regex(...), .choices([...]) or .grammar(...)"
            )
        if self.ignore_eos:
            raise InvalidRequest(
                f"[{owner}] ignore_eos goes on past the end, which a structure sets"
            )

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """``stop``, as the tuple that it is kept as."""
        return self.stop  # type: ignore[return-value]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``stop_token_ids``, as the tuple that it is kept as."""
        return self.stop_token_ids  # type: ignore[return-value]
