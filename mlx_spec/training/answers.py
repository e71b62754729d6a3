"""The target's answers to the user's questions: the text that a draft is trained on.

A draft learns most from what the target itself writes, so the generator writes it, in big batches.
Each answer is one line of JSON in one call; to resume is to read whole lines and go on.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.batching.prompts import encode
from mlx_spec.config import BatchingConfig, ChatConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import OutputError, PromptTooLong
from mlx_spec.training.questions import Question


@dataclass(frozen=True)
class Answer:
    """A question as the target read it, and what it wrote.

    Attributes:
        id: of the answer.
        question, category: the question's.
        temperature: at which it was written.
        prompt, tokens: ids.
    """

    id: str
    question: str
    category: str
    temperature: float
    prompt: list[int]
    tokens: list[int]


@dataclass(frozen=True)
class Writing:
    """How answers are written.

    Attributes:
        max_tokens: of an answer, at most.
        temperatures: each question is answered at each of them.
        batch_size: answers written together.
        seed: added to a number of each question's own.
        chat: how a text is put to the model.
    """

    max_tokens: int
    temperatures: tuple[float, ...]
    batch_size: int
    seed: int
    chat: ChatConfig


def write_answers(
    model: Any,
    tokenizer: Any,
    questions: Seq[Question],
    writing: Writing,
    path: Path,
    heard: Callable[[int], None],
) -> list[Answer]:
    """All answers, those included that ``path`` holds already; the others are added to it.

    Questions that are too long for the model are left out.

    Args:
        heard: is told the tokens of each answer as it comes.

    Raises:
        OutputError: ``path`` cannot be read or written.
    """
    known = {answer.id: answer for answer in read_answers(path)}
    asked = [
        (f"{one.id}-{number}", one, temperature)
        for one in questions
        for number, temperature in enumerate(writing.temperatures)
    ]
    left = [each for each in asked if each[0] not in known]
    if left:
        batching = BatchingConfig(batch_size=writing.batch_size)
        plain = SpeculationConfig(enabled=False)
        generator = BatchedMLXGenerator(model, tokenizer, batching=batching, speculation=plain)
        try:
            with generator, path.open("ab") as file:
                for answer in _write(generator, tokenizer, left, writing):
                    file.write(json.dumps(asdict(answer)).encode() + b"\n")
                    file.flush()
                    known[answer.id] = answer
                    heard(len(answer.tokens))
        except OSError as error:
            raise OutputError(f"[train-draft] {path}: {error.strerror}") from error
    return [known[name] for name, _, _ in asked if name in known]


def read_answers(path: Path) -> list[Answer]:
    """The whole lines of a file; a half-written last one is cut off.

    Raises:
        OutputError: it cannot be read, or has another line.
    """
    if not path.exists():
        return []
    answers: list[Answer] = []
    try:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        for line in data[:whole].splitlines():
            answers.append(Answer(**json.loads(line)))
    except OSError as error:
        raise OutputError(f"[train-draft] {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise OutputError(
            f"[train-draft] {path} line {len(answers) + 1} was not written by this command"
        ) from error
    return answers


def _write(
    generator: BatchedMLXGenerator,
    tokenizer: Any,
    left: Seq[tuple[str, Question, float]],
    writing: Writing,
) -> Iterator[Answer]:
    """Answers in order, with so many requests under way that the batch is full."""
    waiting: deque[tuple[Answer, Any]] = deque()
    for name, question, temperature in left:
        try:
            prompt = encode(tokenizer, question.prompt, f"[train-draft] {name}", writing.chat)
            seed = (writing.seed + int(question.id, 16)) % 2**31
            sampling = SamplingParams(
                max_tokens=writing.max_tokens, temperature=temperature, seed=seed
            )
            stream = generator.submit(prompt, sampling)
        except PromptTooLong:
            continue
        empty = Answer(name, question.id, question.category, temperature, prompt, [])
        waiting.append((empty, stream))
        if len(waiting) >= 2 * writing.batch_size:
            yield from _ended(*waiting.popleft())
    for each in waiting:
        yield from _ended(*each)


def _ended(empty: Answer, stream: Any) -> Iterator[Answer]:
    """The answer, if there is one."""
    tokens = list(stream.result().token_ids)
    if tokens:
        yield replace(empty, tokens=tokens)
