"""``ForeignFunctions``: users' own ``logits_processors`` and ``sampler``, row by row on the host.

They are asked about each position that a draft reaches, with the tokens before it, as if these had
been said; what the target's own sample then refuses never was. So they must be functions of what
they are given. Drafters do not know them: a guess stands where it is what the function made of the
target's logits, and the text is the same without.

What a function raises is its row's affair::

    at a row's first position     the row fails, with these words
    behind a guess                perhaps nobody gets there: the row is asked again, without a draft
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial
from typing import Any, TypeVar

import mlx.core as mx

from mlx_spec.decoding.rules.base import LogitsRule, RuleContext
from mlx_spec.sequence import Sequence

T = TypeVar("T")
NO_TOKEN = -1  # of a sampler that failed


class ForeignFunctions(LogitsRule):
    """The functions of some rows; ``rows`` are their numbers."""

    needs_host = True

    def __init__(self, rows: Seq[int]) -> None:
        self._rows = rows
        self._texts: dict[int, mx.array] = {}

    @classmethod
    def of(cls, sequences: Seq[Sequence]) -> ForeignFunctions | None:
        """Those of these rows; None where none has any."""
        options = [sequence.sampling for sequence in sequences]
        rows = [i for i, one in enumerate(options) if one.processors or one.sampler is not None]
        return cls(rows) if rows else None

    def see(self, sequences: Seq[Sequence], draft: list[list[int]]) -> None:
        """Keep what is known of each row, and guessed."""
        texts = {row: sequences[row].known(0, sequences[row].length) for row in self._rows}
        self._texts = {row: mx.array(text + draft[row]) for row, text in texts.items()}

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        """What rows' processors make of their logits [1, V] at each position, in turn."""
        rows = [row for row in self._rows if context.sequences[row].sampling.processors]
        if not rows:
            return logits
        changed = logits[...]  # another array object: the caller's stays what it is
        for row in rows:
            functions = context.sequences[row].sampling.processors
            made = self._asked(row, context, partial(_processed, functions, logits[row]))
            lost = mx.full((1, logits.shape[-1]), mx.nan, logits.dtype)  # so that it is noticed
            changed[row] = mx.concatenate(made + [lost] * (logits.shape[1] - len(made)))
        return changed

    def pick(self, tokens: mx.array, logits: mx.array, context: RuleContext) -> mx.array:
        """What rows' samplers choose in the place of these tokens."""
        rows = [row for row in self._rows if context.sequences[row].sampling.sampler is not None]
        if not rows:
            return tokens
        changed = tokens[...]
        for row in rows:
            sampler = context.sequences[row].sampling.sampler
            assert sampler is not None
            made = self._asked(row, context, partial(_sampled, sampler, logits[row]))
            lost = [NO_TOKEN] * (tokens.shape[1] - len(made))
            changed[row] = mx.array(made + lost, mx.int32)
        return changed

    def _asked(self, row: int, context: RuleContext, ask: Callable[[mx.array, int], T]) -> list[T]:
        """What is said at each position of a row; up to where something is raised."""
        sequence, made = context.sequences[row], list[T]()
        text, count = self._texts[row], context.positions.shape[1]
        for place in range(count):
            if sequence.length + place > len(text):  # no guess of this row stands there
                made.append(made[-1])
                continue
            try:
                made.append(ask(text[: sequence.length + place], place))
            except _ForeignError as error:
                if place == 0:
                    sequence.doomed = str(error)
                break
        return made


class _ForeignError(Exception):
    """A user's function raised, or returned what is none of its kind."""


def _processed(
    functions: Seq[Callable[..., Any]], logits: mx.array, tokens: mx.array, place: int
) -> mx.array:
    """[1, V] of [N, V], after all functions."""
    own = logits[place][None]
    for function in functions:
        made = _call("logits_processors", function, tokens, own)
        if not isinstance(made, mx.array) or made.shape != (1, logits.shape[-1]):
            shape = getattr(made, "shape", type(made).__name__)
            raise _ForeignError(
                f"[logits_processors] {_name(function)} returned {shape}, expected logits of "
                f"shape {(1, logits.shape[-1])}"
            )
        own = made.astype(logits.dtype)
    return own


def _sampled(sampler: Callable[..., Any], logits: mx.array, tokens: mx.array, place: int) -> int:
    """The token chosen from [N, V]."""
    own = logits[place][None]
    made = _call("sampler", sampler, own - mx.logsumexp(own, axis=-1, keepdims=True))
    try:
        token = int(made.item() if hasattr(made, "item") else made)
    except Exception:
        raise _ForeignError(f"[sampler] {_name(sampler)} returned no token: {made!r}") from None
    if not 0 <= token < logits.shape[-1]:
        raise _ForeignError(
            f"[sampler] {_name(sampler)} returned the token {token}; the model's vocabulary has "
            f"{logits.shape[-1]}"
        )
    return token


def _call(role: str, function: Callable[..., Any], *arguments: mx.array) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise _ForeignError(f"[{role}] {_name(function)} raised {error!r}") from error


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
