"""How probable given continuations are: sums of log-probabilities, for a whole batch at once.

The prompts are fed once; then each round runs one label of every row behind its prompt, over the
round before: rolling back is assigning a length. It samples nothing and knows no texts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx

from mlx_spec.errors import InvalidRequest
from mlx_spec.model.runner import ModelRunner, Rows

Tokens = Seq[int]


def score(
    runner: ModelRunner, prompts: Seq[Tokens], labels: Seq[Seq[Tokens]], step_size: int = 2048
) -> list[list[float]]:
    """Log-probability of each label's tokens after its row's prompt.

    Args:
        runner: the model, with at least as many slots as prompts, none in use.
        prompts: B lists of token ids, ragged.
        labels: for each prompt its labels' token ids; numbers and lengths may differ.
        step_size: most prompt tokens of one forward pass, over all rows.

    Returns:
        ``log p(label | prompt)``, the sum over its tokens, for each row and label.

    Raises:
        InvalidRequest: an empty prompt or label, or numbers of rows that differ.
    """
    if len(prompts) != len(labels) or not all(prompts):
        raise InvalidRequest(f"[score] {len(prompts)} prompts, {len(labels)} rows of labels")
    if not all(row and all(row) for row in labels):
        raise InvalidRequest("[score] a row without labels, or an empty label")
    longest = max(len(label) for row in labels for label in row)
    cached = [len(prompt) - 1 for prompt in prompts]
    runner.pool.acquire(len(prompts))
    try:
        runner.pool.reserve(max(cached) + longest)
        _feed(runner, prompts, max(cached), step_size)
        starts = mx.array(cached, mx.int32)
        rounds = []
        for turn in range(max(map(len, labels))):
            # A row without so many labels repeats its first one; nobody reads the result.
            chosen = [row[turn] if turn < len(row) else row[0] for row in labels]
            rounds.append(
                _round(runner, [prompt[-1] for prompt in prompts], chosen, starts, cached)
            )
        table = list(zip(*rounds, strict=True))
    finally:
        runner.pool.keep([])
        runner.pool.trim()
    return [list(table[i][: len(row)]) for i, row in enumerate(labels)]


def _feed(runner: ModelRunner, prompts: Seq[Tokens], width: int, step_size: int) -> None:
    """Write the K/V of all prompts but their last tokens, which the labels' passes bring."""
    if width:
        tokens = mx.array([_pad(prompt[:-1], width) for prompt in prompts], mx.int32)
        starts = mx.zeros(len(prompts), mx.int32)
        runner.feed(Rows(tokens, starts, width, uniform=True), step_size, wait=True)


def _round(
    runner: ModelRunner, last: Tokens, labels: Seq[Tokens], starts: mx.array, cached: Tokens
) -> list[float]:
    """One label a row: its first token is predicted by the prompt's last one."""
    width = max(map(len, labels))
    inputs = [_pad([token, *label[:-1]], width) for token, label in zip(last, labels, strict=True)]
    rows = Rows(mx.array(inputs, mx.int32), starts, max(cached) + width)
    logits = runner.forward(rows).astype(mx.float32)
    targets = mx.array([_pad(label, width) for label in labels], mx.int32)  # [B, width]
    chosen = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_probs = chosen - mx.logsumexp(logits, axis=-1)
    lengths = mx.array([len(label) for label in labels])
    mask = mx.arange(width) < lengths[:, None]
    sums: Any = mx.where(mask, log_probs, 0.0).sum(axis=-1).tolist()
    return list(sums)


def _pad(tokens: Tokens, width: int) -> list[int]:
    return [*tokens, *[0] * (width - len(tokens))]
