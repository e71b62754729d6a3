"""How probable given continuations are: sums of log-probabilities, for a whole batch at once.

What all prompts begin with is fed once, for this batch and the next ones; then their ends, in runs
of similar length. One pass of the last tokens predicts the first token of every label; what labels
have beyond it runs behind the prompts, one label a row at a time, over the round before: rolling
back is assigning a length, or states that were held. It samples nothing and knows no texts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import takewhile
from typing import Any

import mlx.core as mx

from mlx_spec.cache.layer import RowState
from mlx_spec.errors import InvalidRequest
from mlx_spec.model.packed_feeding import feed_packed
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.model.similar_lengths import similar_lengths

Tokens = Seq[int]

# A beginning shorter than this costs more to copy into every row than to compute again.
MIN_SHARED = 8


class Scorer:
    """Scores labels behind prompts.

    Args:
        runner: the model; no slot may be in use.
        step_size: most prompt tokens of one forward pass, over all rows.

    Attributes:
        reused: prompt tokens that did not have to be computed again, over all time.
    """

    def __init__(self, runner: ModelRunner, step_size: int = 2048) -> None:
        self.reused = 0
        self._runner, self._step_size = runner, step_size
        self._shared: list[int] = []
        self._shared_row = RowState()

    def score(self, prompts: Seq[Tokens], labels: Seq[Seq[Tokens]]) -> list[list[float]]:
        """Log-probability of each label's tokens after its row's prompt.

        Args:
            prompts: B lists of token ids, ragged; at most as many as the runner has slots.
            labels: for each prompt its labels' token ids; numbers and lengths may differ.

        Returns:
            ``log p(label | prompt)``, the sum over its tokens, for each row and label.

        Raises:
            InvalidRequest: an empty prompt or label, or numbers of rows that differ.
        """
        _check(prompts, labels)
        # In order of length, so that neighbours waste little when they are padded alike.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        sums = self._score([prompts[row] for row in order], [labels[row] for row in order])
        return [row for _, row in sorted(zip(order, sums, strict=True))]

    def _score(self, prompts: list[Tokens], labels: list[Seq[Tokens]]) -> list[list[float]]:
        pool = self._runner.pool
        longest = max(len(label) for row in labels for label in row)
        pool.acquire(len(prompts))
        try:
            pool.reserve(len(prompts[-1]) + longest)
            self._feed(prompts, self._share(prompts))
            return self._labels(prompts, labels)
        finally:
            pool.keep([])
            pool.trim()

    def _share(self, prompts: list[Tokens]) -> int:
        """Fill in what all prompts begin with; return how many tokens that is."""
        # The last token stays out: its pass predicts the labels.
        shared = _common([prompt[:-1] for prompt in prompts])
        known = len(_common([shared, self._shared]))
        if known < len(self._shared) and not self._runner.pool.sliceable:
            known = 0  # what was kept goes further, and cannot be cut
        if known >= MIN_SHARED and known * 2 > len(shared):
            length = known  # a few more tokens in common are no reason to feed all of it again
        elif len(prompts) > 1 and len(shared) >= MIN_SHARED:
            self._feed_run([shared], 0, 0)
            length = len(shared)
            self._shared, self._shared_row = shared, self._runner.pool.save(0, 0, length)
            self.reused -= length
        else:
            return 0
        # Where it is longer, what is too much is garbage that is written over.
        pool = self._runner.pool
        pool.reserve(len(self._shared))
        for slot in range(len(prompts)):
            pool.load(slot, 0, [self._shared_row])
        self.reused += length * len(prompts)
        return length

    def _feed(self, prompts: list[Tokens], begin: int) -> None:
        """Write the K/V of all prompts from position ``begin`` on, but for their last tokens."""
        lengths = [len(prompt) - begin for prompt in prompts]
        for first, end in similar_lengths(lengths, pads=self._runner.pads):
            self._feed_run([prompt[:-1] for prompt in prompts[first:end]], begin, first)

    def _feed_run(self, prompts: list[Tokens], begin: int, first: int) -> None:
        """Feed rows from slot ``first`` on, in ascending order of their lengths."""
        width = len(prompts[-1]) - begin
        if len(prompts[0]) < len(prompts[-1]) and self._runner.packs:
            feed_packed(self._runner, prompts, begin, first, self._step_size)
        elif width > 0:
            tokens = mx.array([_pad(prompt[begin:], width) for prompt in prompts], mx.int32)
            starts = mx.full(len(prompts), begin, mx.int32)
            lengths = [max(0, len(prompt) - begin) for prompt in prompts]
            counts = mx.array(lengths, mx.int32) if min(lengths) < width else None
            rows = Rows(tokens, starts, begin + width, first, uniform=True, counts=counts)
            self._runner.feed(rows, self._step_size, wait=True)

    def _labels(self, prompts: list[Tokens], labels: list[Seq[Tokens]]) -> list[list[float]]:
        """Every label, behind prompts that are in the cache but for their last tokens."""
        starts = [len(prompt) - 1 for prompt in prompts]
        sums = self._pass(
            [prompt[-1:] for prompt in prompts],
            [[[label[0]] for label in row] for row in labels],
            starts,
        )
        after = [start + 1 for start in starts]
        # States take nothing back, and rings not what is longer than their slack.
        layers = self._runner.pool.layers
        known = [(layer, layer.arrays) for layer in layers if not layer.sliceable]
        for turn in range(max(map(len, labels))):
            chosen = [row[turn] if turn < len(row) else [] for row in labels]
            if any(len(label) > 1 for label in chosen):
                inputs = [label[:-1] for label in chosen]
                rest = self._pass(inputs, [[label[1:]] for label in chosen], after)
                for layer, arrays in known:
                    layer.arrays = arrays
                for row, (more,) in zip(sums, rest, strict=True):
                    if turn < len(row):
                        row[turn] += more
        return sums

    def _pass(
        self, inputs: list[Tokens], targets: list[list[Tokens]], starts: list[int]
    ) -> list[list[float]]:
        """Sums of log p over each of a row's ``targets``, all read along the same ``inputs``."""
        width = max(1, *map(len, inputs))
        tokens = mx.array([_pad(row, width) for row in inputs], mx.int32)
        counts = mx.array([len(row) for row in inputs], mx.int32)
        limit, at = max(starts) + width, tuple(starts)
        begins = tuple(start == 0 for start in starts)
        rows = Rows(tokens, mx.array(starts, mx.int32), limit, counts=counts, at=at, begins=begins)
        logits = self._runner.forward(rows).astype(mx.float32)  # [B, width, vocabulary]
        log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        most = max(map(len, targets))
        padded = [_pad(row, most, []) for row in targets]
        wanted = mx.array([[_pad(one, width) for one in row] for row in padded], mx.int32)
        lengths = mx.array([[len(one) for one in row] for row in padded])  # [B, most]
        # [B, width, most]: the probability of each target's token at each place.
        chosen = mx.take_along_axis(log_probs, wanted.swapaxes(1, 2), axis=-1)
        mask = mx.arange(width)[:, None] < lengths[:, None]
        sums: Any = mx.where(mask, chosen, 0.0).sum(axis=1).tolist()
        return [row[: len(own)] for row, own in zip(sums, targets, strict=True)]


def _common(rows: Seq[Tokens]) -> list[int]:
    """What all rows begin with."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return [column[0] for column in columns]


def _check(prompts: Seq[Tokens], labels: Seq[Seq[Tokens]]) -> None:
    if len(prompts) != len(labels) or not prompts or not all(prompts):
        raise InvalidRequest(f"[score] {len(prompts)} prompts, {len(labels)} rows of labels")
    if not all(row and all(row) for row in labels):
        raise InvalidRequest("[score] a row without labels, or an empty label")


def _pad(items: Seq[Any], width: int, filler: Any = 0) -> list[Any]:
    return [*items, *[filler] * (width - len(items))]
