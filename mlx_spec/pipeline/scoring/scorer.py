"""How probable given continuations are: sums of log-probabilities, for a whole batch at once.

What all prompts begin with is read once, for this batch and the next ones; then their ends, in few
passes of prompts that are as long. Their last tokens, the only ones whose logits are made, say how
likely the first token of every label is. What labels have beyond it is read behind copies of the
prompts, a label a copy, as many together as make a pass. It samples nothing and knows no texts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import takewhile

import mlx.core as mx

from mlx_spec.cache.layer import RowState
from mlx_spec.cache.slot_sizes import SlotSize
from mlx_spec.errors import InvalidRequest
from mlx_spec.model.prompt_passes import even_runs, read_prompts
from mlx_spec.model.runner import ModelRunner, Rows, pass_size
from mlx_spec.pipeline.scoring.label_pass import Job, LabelPass, log_probs
from mlx_spec.pipeline.scoring.ways import LabelPath, Tokens, ways
from mlx_spec.row_limit import RowLimit

# A beginning shorter than this costs more to copy into every row than to compute again.
MIN_SHARED = 8
# Tokens that copies of prompts may hold together, in passes of prompts (``step_size``).
_COPIED = 2


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
        self._runner, self._most = runner, pass_size(step_size)
        self._copied = _COPIED * step_size
        self._limit = runner.pool.limit
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
        # In order of length: neighbours are read together.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        sums = self._score([prompts[row] for row in order], [labels[row] for row in order])
        return [row for _, row in sorted(zip(order, sums, strict=True))]

    def _score(self, prompts: list[Tokens], labels: list[Seq[Tokens]]) -> list[list[float]]:
        pool, count = self._runner.pool, len(prompts)
        longest = len(prompts[-1]) + max(len(label) for row in labels for label in row)
        pool.acquire(count)
        try:
            pool.fit(SlotSize(count, count, longest), longest)
            sums = self._begin(prompts, labels, self._share(prompts))
            self._go_on(prompts, labels, sums)
            return sums
        finally:
            pool.keep([])
            pool.trim()
            pool.limit = self._limit

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
            self._feed([shared], 0)
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

    def _feed(self, prompts: Seq[Tokens], begin: int) -> None:
        """Write the K/V of prompts from position ``begin`` on."""
        for _ in read_prompts(self._runner, prompts, begin, self._most, speaking=False):
            pass

    def _begin(
        self, prompts: list[Tokens], labels: list[Seq[Tokens]], begin: int
    ) -> list[list[float]]:
        """What the first token of each label scores, of prompts that are read from there on."""
        if not self._runner.chooses:
            self._feed([prompt[:-1] for prompt in prompts], begin)
            return self._first(labels, self._runner.forward(_last_tokens(prompts)))
        sums: list[list[float]] = [[]] * len(prompts)
        for first, logits in read_prompts(self._runner, prompts, begin, self._most, speaking=True):
            rows = slice(first, first + len(logits))
            sums[rows] = self._first(labels[rows], logits)
        return sums

    def _first(self, labels: list[Seq[Tokens]], logits: mx.array) -> list[list[float]]:
        """The same by the logits [n, 1, V] of the prompts' last tokens."""
        wanted = [(place, label[0]) for place, row in enumerate(labels) for label in row]
        values = iter(log_probs(logits, wanted))
        return [[next(values) for _ in row] for row in labels]

    def _go_on(
        self, prompts: list[Tokens], labels: list[Seq[Tokens]], sums: list[list[float]]
    ) -> None:
        """Add what labels' further tokens score, behind prompts that are in the slots."""
        own = [ways(row) for row in labels]
        most = max(map(len, own))
        width = max((len(way.tokens) for row in own for way in row), default=0)
        together = self._together(len(prompts), most, width)
        copied: list[int] = []
        for begin in range(0, most, together):
            jobs = [
                (row, way)
                for row, theirs in enumerate(own)
                for way in theirs[begin : begin + together]
            ]
            rows = [row for row, _ in jobs]
            if together == 1:  # where the prompts are; of a row without one any token
                missing = sorted(set(range(len(prompts))).difference(rows))
                jobs += [(row, LabelPath(list(prompts[row][-1:]), [])) for row in missing]
                jobs.sort(key=_row)
            elif rows != copied:
                self._copy(len(prompts), rows)
                copied = rows
            slot = len(prompts) if copied else 0
            for first, end in even_runs(0, len(jobs), lambda a, b: (b - a) * width, self._most):
                if any(way.labels for _, way in jobs[first:end]):
                    self._read_ways(LabelPass(prompts, labels, jobs[first:end], slot + first), sums)

    def _together(self, rows: int, most: int, width: int) -> int:
        """How many ways of each row are read at once, of ``most`` that one has."""
        if most <= 1:
            return 1
        copies = min(self._most // width, self._copied // self._runner.pool.positions)
        turns = -(-most // max(1, copies // rows))
        return -(-most // turns)

    def _copy(self, count: int, rows: list[int]) -> None:
        """Copies of prompts, behind all of them."""
        pool = self._runner.pool
        pool.keep(range(count))
        pool.limit = RowLimit(count + len(rows))
        pool.acquire(len(rows))
        pool.keep([*range(count), *rows])

    def _read_ways(self, behind: LabelPass, sums: list[list[float]]) -> None:
        """One pass, whose slots hold the prompts before and after."""
        # States take nothing back, and rings not what is longer than their slack.
        layers = self._runner.pool.layers
        known = [(layer, layer.arrays) for layer in layers if not layer.sliceable]
        values = behind.read(self._runner)
        for layer, arrays in known:
            layer.arrays = arrays
        for (row, number), value in zip(behind.owners, values, strict=True):
            sums[row][number] += value


def _row(job: Job) -> int:
    return job[0]


def _last_tokens(prompts: Seq[Tokens]) -> Rows:
    """The pass over the last token of each prompt, the others of which are in the slots."""
    at = tuple(len(prompt) - 1 for prompt in prompts)
    return Rows(
        mx.array([prompt[-1:] for prompt in prompts], mx.int32),
        mx.array(at, mx.int32),
        max(at) + 1,
        at=at,
        begins=tuple(start == 0 for start in at),
    )


def _common(rows: Seq[Tokens]) -> list[int]:
    """What all rows begin with."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return [column[0] for column in columns]


def _check(prompts: Seq[Tokens], labels: Seq[Seq[Tokens]]) -> None:
    if len(prompts) != len(labels) or not prompts or not all(prompts):
        raise InvalidRequest(f"[score] {len(prompts)} prompts, {len(labels)} rows of labels")
    if not all(row and all(row) for row in labels):
        raise InvalidRequest("[score] a row without labels, or an empty label")
