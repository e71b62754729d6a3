"""Labels' probabilities for a stage, a batch of records at a time.

Each label is scored as the continuation of its record's prompt. A label that is likely after any
text says nothing about this one, so what it scores behind texts without content is taken off
(contextual calibration: Zhao et al. 2021, arXiv:2102.09690).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_spec.batching.prompts import encode
from mlx_spec.errors import InvalidRequest, PromptTooLong
from mlx_spec.model.context import context_length
from mlx_spec.model.runner import ModelRunner
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.scoring.continuation import Encode, spellings, tokenise
from mlx_spec.pipeline.scoring.scorer import Scorer
from mlx_spec.pipeline.stage import Answer, Score
from mlx_spec.results import GenerationStats

# Requests that differ in more than their prompts are few, unless a template shows other fields.
_PRIORS = 256
WHERE = "[score] the prompt"


@dataclass(frozen=True)
class _ScoredPrompt:
    """One prompt's tokens, and for each label the tokens of its spellings."""

    prompt: list[int]
    labels: list[list[list[int]]]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest label."""
        return len(self.prompt) + max(len(one) for label in self.labels for one in label)


@dataclass
class _Prior:
    """What labels score behind neutral prompts, as log-probabilities; empty until it is known."""

    rows: list[_ScoredPrompt]
    values: list[float] = field(default_factory=list)


class Scoring:
    """Labels' probabilities, ``batch_size`` records at a time, in the caller's thread.

    No generator may run on the same model meanwhile: MLX work of two threads would mix.
    """

    def __init__(self, model: Any, tokenizer: Any, flags: Flags) -> None:
        self._tokenizer, self._chat = tokenizer, flags.chat(tokenizer)
        self._rows = flags.batches.batch_size
        runner = ModelRunner(model, self._rows, flags.batches.cache)
        self._scorer = Scorer(runner, flags.batches.prefill_step_size)
        self._context = context_length(model)
        self._queue: list[_Scored] = []
        self._priors: dict[Score, _Prior] = {}
        self._tokens, self._seconds = 0, 0.0

    def submit(self, request: Score, seed: int) -> _Scored:
        """Queue one record; it is scored, with others, when someone waits for it.

        Raises:
            InvalidRequest: its prompt, or one of the neutral ones, cannot be scored.
        """
        key = replace(request, prompt="")
        if key not in self._priors:
            if len(self._priors) >= _PRIORS:
                self._priors.pop(next(iter(self._priors)))
            self._priors[key] = _Prior([self._row(request, text) for text in request.neutral])
        pending = _Scored(self, request, self._row(request, request.prompt), self._priors[key])
        self._queue.append(pending)
        return pending

    def advance(self) -> None:
        """Score the next batch of what is queued."""
        batch, self._queue = self._queue[: self._rows], self._queue[self._rows :]
        try:
            for pending in batch:
                self._learn(pending.prior)
            scores = self._score([pending.row for pending in batch])
        except Exception as error:
            for pending in batch:  # or they would be waited for, for ever
                pending.error = error
            return
        for pending, row in zip(batch, scores, strict=True):
            labels, prior = pending.request.labels, pending.prior.values or [0.0] * len(row)
            pending.answer = {
                label: value - known for label, value, known in zip(labels, row, prior, strict=True)
            }

    def stats(self) -> GenerationStats:
        """Prompt figures only: nothing is generated."""
        return GenerationStats(
            prompt_tokens=self._tokens,
            prompt_time=self._seconds,
            reused_tokens=self._scorer.reused,
        )

    def _learn(self, prior: _Prior) -> None:
        """What the labels score behind texts without content.

        Scored in batches of their own: what is beside a row decides the last bits of its scores,
        and these must be the same in a resumed run.
        """
        if prior.rows and not prior.values:
            scores: list[list[float]] = []
            for first in range(0, len(prior.rows), self._rows):
                scores += self._score(prior.rows[first : first + self._rows])
            prior.values = _mean(scores)

    def _score(self, rows: Seq[_ScoredPrompt]) -> list[list[float]]:
        """Log-probability of each row's labels, their spellings summed."""
        started = time.perf_counter()
        flat = [[one for label in row.labels for one in label] for row in rows]
        sums = self._scorer.score([row.prompt for row in rows], flat)
        self._seconds += time.perf_counter() - started
        self._tokens += sum(len(row.prompt) for row in rows)
        self._tokens += sum(len(one) for row in flat for one in row)
        result = []
        for row, values in zip(rows, sums, strict=True):
            each = iter(values)
            result.append([log_sum_exp(_take(each, len(label))) for label in row.labels])
        return result

    def _row(self, request: Score, prompt: str | Seq[Mapping[str, Any]]) -> _ScoredPrompt:
        encode, text = self._opened(request, prompt)
        written = [spellings(label, text, request.variants) for label in request.labels]
        row = _ScoredPrompt(*tokenise(encode, text, written))
        if self._context is not None and row.longest > self._context:
            raise PromptTooLong(
                f"[score] prompt and label have {row.longest} tokens; the model's context is "
                f"{self._context}"
            )
        return row

    def _opened(self, request: Score, prompt: str | Seq[Mapping[str, Any]]) -> tuple[Encode, str]:
        """How a prompt is encoded by its end, and that end, which the labels go on with.

        The end of a plain text is all of it; of a chat, what the answer has begun with.
        """
        chat = self._chat
        # A system prompt can be heard in the template only.
        wanted = request.chat or chat.system_prompt is not None
        if isinstance(prompt, str) and not (wanted and chat.texts):
            return lambda end: encode(self._tokenizer, end, WHERE), prompt
        asked, begun = prompt, chat.prefill_response or ""
        if isinstance(prompt, str):
            # "Topic:", the last line, is where the answer begins.
            question, line, begun = prompt.rpartition("\n")
            # A neutral prompt may have nothing before it; no message is empty, though.
            asked, begun = (question.rstrip() or " ", begun) if line else (prompt, "")

        def templated(end: str) -> list[int]:
            answering = replace(chat, prefill_response=end or None)
            return encode(self._tokenizer, asked, WHERE, answering)

        return templated, begun


class _Scored:
    """A record in a scoring batch."""

    def __init__(self, backend: Scoring, request: Score, row: _ScoredPrompt, prior: _Prior) -> None:
        self._backend = backend
        self.request, self.row, self.prior = request, row, prior
        self.answer: dict[str, float] | None = None
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None

    def result(self, timeout: float | None = None) -> Answer:
        """Log-probability of each label; scores this record's batch and those before it.

        Raises:
            InvalidRequest: the model's scores are no numbers.
        """
        while not self.done:
            self._backend.advance()
        if self.answer is None:
            assert self.error is not None
            raise self.error
        check_numbers(self.answer)
        return self.answer


def check_numbers(scores: Mapping[str, float]) -> None:
    """Refuse scores that rank nothing: one is NaN, or all are minus infinity."""
    values = list(scores.values())
    if any(math.isnan(value) for value in values) or not any(map(math.isfinite, values)):
        shown = ", ".join(f"{label.strip()} {value}" for label, value in scores.items())
        raise InvalidRequest(
            f"[score] the model's scores are no numbers ({shown}): its weights or its dtype "
            "overflow"
        )


def log_sum_exp(values: Seq[float]) -> float:
    """log of the sum of exp; minus infinity and NaN stay what they are."""
    top = max(values)
    if not math.isfinite(top) or any(map(math.isnan, values)):
        return math.nan if any(map(math.isnan, values)) else top
    return top + math.log(sum(math.exp(value - top) for value in values))


def _mean(scores: Seq[Seq[float]]) -> list[float]:
    """log of the labels' mean probability among the labels; a lone label's mean log-probability.

    A lone label's own scores differ by orders of magnitude, so that one text would decide a mean.
    """
    if len(scores[0]) == 1:
        return [sum(row[0] for row in scores) / len(scores)]
    shares = [[value - log_sum_exp(row) for value in row] for row in scores]
    return [log_sum_exp(column) - math.log(len(shares)) for column in zip(*shares, strict=True)]


def _take(values: Iterator[float], count: int) -> list[float]:
    return [next(values) for _ in range(count)]
