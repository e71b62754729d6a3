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
from dataclasses import dataclass, replace
from typing import Any

from mlx_spec.decoding.scoring import Scorer
from mlx_spec.errors import InvalidRequest, PromptTooLong
from mlx_spec.flags import Flags
from mlx_spec.model.loader import context_length
from mlx_spec.model.runner import ModelRunner
from mlx_spec.pipeline.continuation import spellings, tokenise
from mlx_spec.pipeline.stage import Answer, Score
from mlx_spec.results import GenerationStats

# Requests that differ in more than their prompts are few, unless a template shows other fields.
_PRIORS = 256


@dataclass(frozen=True)
class _Row:
    """One prompt's tokens, and for each label the tokens of its spellings."""

    prompt: list[int]
    labels: list[list[list[int]]]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest label."""
        return len(self.prompt) + max(len(one) for label in self.labels for one in label)


class Scoring:
    """Labels' probabilities, ``batch_size`` records at a time, in the caller's thread.

    No generator may run on the same model meanwhile: MLX work of two threads would mix.
    """

    def __init__(self, model: Any, tokenizer: Any, flags: Flags) -> None:
        self._tokenizer, self._flags = tokenizer, flags
        self._rows = flags.batches.batch_size
        self._scorer = Scorer(ModelRunner(model, self._rows), flags.batches.prefill_step_size)
        self._context = context_length(model)
        self._queue: list[_Scored] = []
        self._priors: dict[Score, list[float]] = {}
        self._tokens, self._seconds = 0, 0.0

    def submit(self, request: Score, seed: int) -> _Scored:
        """Queue one record; it is scored, with others, when someone waits for it."""
        pending = _Scored(self, request, self._row(request, request.prompt))
        self._queue.append(pending)
        return pending

    def advance(self) -> None:
        """Score the next batch of what is queued."""
        batch, self._queue = self._queue[: self._rows], self._queue[self._rows :]
        priors = [self._prior(pending.request) for pending in batch]
        scores = self._score([pending.row for pending in batch])
        for pending, row, prior in zip(batch, scores, priors, strict=True):
            values = [score - known for score, known in zip(row, prior, strict=True)]
            pending.answer = dict(zip(pending.request.labels, values, strict=True))

    def stats(self) -> GenerationStats:
        """Prompt figures only: nothing is generated."""
        return GenerationStats(prompt_tokens=self._tokens, prompt_time=self._seconds)

    def _prior(self, request: Score) -> list[float]:
        """What the labels score behind texts without content, as log-probabilities.

        Scored in batches of their own: what is beside a row decides the last bits of its scores,
        and these must be the same in a resumed run.
        """
        key = replace(request, prompt="")
        if key not in self._priors:
            if len(self._priors) >= _PRIORS:
                self._priors.pop(next(iter(self._priors)))
            rows = [self._row(request, prompt) for prompt in request.neutral]
            scores: list[list[float]] = []
            for first in range(0, len(rows), self._rows):
                scores += self._score(rows[first : first + self._rows])
            self._priors[key] = _mean(scores) if scores else [0.0] * len(request.labels)
        return self._priors[key]

    def _score(self, rows: Seq[_Row]) -> list[list[float]]:
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

    def _row(self, request: Score, prompt: Any) -> _Row:
        text, special = self._text(request, prompt)

        def encode(whole: str) -> list[int]:
            return list(self._tokenizer.encode(whole, add_special_tokens=special))

        written = [spellings(label, text, request.variants) for label in request.labels]
        row = _Row(*tokenise(encode, text, written))
        if self._context is not None and row.longest > self._context:
            raise PromptTooLong(
                f"[score] prompt and label have {row.longest} tokens; the model's context is "
                f"{self._context}"
            )
        return row

    def _text(self, request: Score, prompt: Any) -> tuple[str, bool]:
        """The whole text before the label, and whether special tokens are added to it."""
        tokenizer = self._tokenizer
        chat = request.chat and tokenizer.has_chat_template and not self._flags.ignore_chat_template
        if isinstance(prompt, str) and not chat:
            return prompt, tokenizer.bos_token is None or not prompt.startswith(tokenizer.bos_token)
        begun = ""
        if isinstance(prompt, str):
            # The prompt's last line, "Topic:", is where the answer begins.
            asked, _, begun = prompt.rpartition("\n")
            system = self._flags.system_prompt
            before = [] if system is None else [{"role": "system", "content": system}]
            prompt = [*before, {"role": "user", "content": asked.rstrip() or begun}]
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return text + begun, False


class _Scored:
    """A record in a scoring batch."""

    def __init__(self, backend: Scoring, request: Score, row: _Row) -> None:
        self._backend = backend
        self.request, self.row = request, row
        self.answer: dict[str, float] | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None

    def result(self, timeout: float | None = None) -> Answer:
        """Log-probability of each label; scores this record's batch and those before it.

        Raises:
            InvalidRequest: the model's scores are no numbers.
        """
        while self.answer is None:
            self._backend.advance()
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
    """log of the labels' mean probability among the labels."""
    shares = [[value - log_sum_exp(row) for value in row] for row in scores]
    return [log_sum_exp(column) - math.log(len(shares)) for column in zip(*shares, strict=True)]


def _take(values: Iterator[float], count: int) -> list[float]:
    return [next(values) for _ in range(count)]
