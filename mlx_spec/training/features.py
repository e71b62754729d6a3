"""What the target thought at every token of a text: hidden states and its likely next tokens.

They are computed once and lie in shards, each whole or not there at all; a run that was killed goes
on with the first text that no shard names. 16-bit floats: about 1.4 kB a token for 576 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_spec.model.hidden import HiddenLayers, bind_hidden, noting, unbind_hidden
from mlx_spec.training.answers import Answer
from mlx_spec.training.files import load_arrays, save_arrays
from mlx_spec.training.vocabulary import Vocabulary

# Likely tokens kept of each position; tokens of a shard, and of one pass of the target.
KEPT, SHARD, PASS = 64, 4096, 512
NOTHING = -1e4  # the log-probability of a place that holds no token


@dataclass(frozen=True)
class Example:
    """One text with what the target thought of it, T tokens.

    Attributes:
        id, category: of its question.
        answer: index of the first token that the target wrote.
        tokens: [T].
        hidden: [T, H] float16, after the target's last norm.
        likely: [T, KEPT], of the likeliest tokens that can be drafted, their rows in the
            vocabulary of frequent tokens.
        logprobs: [T, KEPT] float16, among all tokens.
        best: [T], the token that the target would choose, of all.
    """

    id: str
    category: str
    answer: int
    tokens: Any
    hidden: Any
    likely: Any
    logprobs: Any
    best: Any

    def __len__(self) -> int:
        return len(self.tokens)


def compute_features(
    model: Any,
    answers: Iterable[Answer],
    vocabulary: Vocabulary,
    folder: Path,
    heard: Callable[[int], None],
) -> None:
    """Write shards of those answers that have none yet.

    Args:
        heard: is told the tokens of each shard as it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = {name for shard in _shards(folder) for name in load_arrays(shard)[1]["ids"]}
    number = len(_shards(folder))
    wanted = HiddenLayers(final=True)
    bind_hidden(model, wanted)
    try:
        for group in _groups([one for one in answers if one.id not in done]):
            arrays = _shard(model, group, vocabulary, wanted)
            about = {"ids": [a.id for a in group], "categories": [a.category for a in group]}
            save_arrays(_path(folder, number), arrays, about)
            number += 1
            heard(len(arrays["tokens"]))
    finally:
        unbind_hidden(model)


def read_features(folder: Path) -> Iterator[Example]:
    """All examples of the shards, in the order in which they were written.

    Raises:
        OutputError: a shard is damaged.
    """
    for path in _shards(folder):
        loaded, about = load_arrays(path)
        arrays = {name: np.array(array) for name, array in loaded.items()}
        for row, start in enumerate(arrays["starts"][:-1]):
            end = arrays["starts"][row + 1]
            parts = ("tokens", "hidden", "likely", "logprobs", "best")
            yield Example(
                about["ids"][row],
                about["categories"][row],
                int(arrays["answers"][row]),
                *(arrays[part][start:end] for part in parts),
            )


def _path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.safetensors"))


def _groups(answers: list[Answer]) -> Iterator[list[Answer]]:
    """Answers of about a shard's tokens."""
    group: list[Answer] = []
    size = 0
    for answer in answers:
        group.append(answer)
        size += len(answer.prompt) + len(answer.tokens)
        if size >= SHARD:
            yield group
            group, size = [], 0
    if group:
        yield group


def _passes(group: list[Answer]) -> Iterator[list[int]]:
    """Indices of answers of similar length, for one pass each."""
    lengths = [len(one.prompt) + len(one.tokens) for one in group]
    some: list[int] = []
    for index in sorted(range(len(group)), key=lengths.__getitem__):
        if some and (len(some) + 1) * lengths[index] > PASS:
            yield some
            some = []
        some.append(index)
    if some:
        yield some


def _shard(
    model: Any, group: list[Answer], vocabulary: Vocabulary, wanted: HiddenLayers
) -> dict[str, mx.array]:
    texts = [[*one.prompt, *one.tokens] for one in group]
    found: list[list[mx.array]] = [[] for _ in group]
    for some in _passes(group):
        width = max(len(texts[index]) for index in some)
        padded = mx.array([texts[index] + [0] * (width - len(texts[index])) for index in some])
        thoughts = _think(model, padded, vocabulary, wanted)
        mx.eval(thoughts)
        for row, index in enumerate(some):
            found[index] = [array[row, : len(texts[index])] for array in thoughts]
    joined = [mx.concatenate(list(parts)) for parts in zip(*found, strict=True)]
    starts = np.cumsum([0, *map(len, texts)])
    return {
        **dict(zip(("hidden", "likely", "logprobs", "best"), joined, strict=True)),
        "tokens": mx.array([token for text in texts for token in text], mx.int32),
        "starts": mx.array(starts.astype(np.int32)),
        "answers": mx.array([len(one.prompt) for one in group], mx.int32),
    }


def _think(
    model: Any, tokens: mx.array, vocabulary: Vocabulary, wanted: HiddenLayers
) -> list[mx.array]:
    """Hidden states, likely tokens, their log-probabilities and the best token, lazily."""
    with noting(wanted) as notes:
        logits = model(tokens).astype(mx.float32)
        hidden = notes.take()
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    few = vocabulary.of_logits(logits)
    kept = min(KEPT, few.shape[-1])
    likely = mx.argpartition(-few, kept - 1, axis=-1)[..., :kept]
    logprobs = mx.maximum(mx.take_along_axis(few, likely, axis=-1) - total, NOTHING)
    return [
        hidden.astype(mx.float16),
        likely.astype(mx.int32),
        logprobs.astype(mx.float16),
        mx.argmax(logits, axis=-1).astype(mx.int32),
    ]
