"""Prompts of different lengths that are read together: in few passes, and those as even as can be.

Neighbours in length share a pass, so that attention reads hardly more than each one's own keys.
Models whose passes can be packed (``ModelRunner.packs``) read the tokens that there are; others
rectangles, in which prompts of similar length alone are worth their holes. A prompt longer than a
pass is read in equal pieces; where passes are packed, all long ones together, by columns::

    lengths  2 3 3 4 11    passes of 6 tokens at most    2 3 | 3 | 4 | 5 of 11 | 6 of 11
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import accumulate

import mlx.core as mx

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.model.similar_lengths import similar_lengths

_WIDE = 64  # tokens: of longer texts what attention computes above the diagonal costs too much


@dataclass(frozen=True)
class PromptSlice:
    """One pass over prompts.

    Attributes:
        first, end: rows ``first .. end - 1``.
        begin, stop: of each the tokens ``begin .. stop - 1``, or up to its end before that.
        ended: how many of its rows, the first ones, it reads to their ends.
    """

    first: int
    end: int
    begin: int
    stop: int
    ended: int


def read_prompts(
    runner: ModelRunner, prompts: Seq[Seq[int]], begin: int, most: int, *, speaking: bool
) -> Iterator[tuple[int, mx.array]]:
    """Write the K/V of prompts from position ``begin`` on, pass by pass, and wait for each.

    Args:
        runner: the model.
        prompts: token ids of the rows from slot 0 on, in ascending order of their lengths.
        begin: what their slots hold already.
        most: tokens of one pass.
        speaking: whether logits of last tokens are wanted; a model that ``chooses``.

    Yields:
        Where ``speaking``, the first one of the rows that a pass has read to their ends, and
        logits [n, 1, vocabulary] of their last tokens: to be computed before the next ones.
    """
    skipped = sum(len(prompt) <= begin for prompt in prompts)
    lengths = [len(prompt) - begin for prompt in prompts[skipped:]]
    packs = bool(lengths) and lengths[0] < lengths[-1] and runner.packs
    for part in prompt_passes(lengths, most, packs=packs, pads=runner.pads):
        first, end = skipped + part.first, skipped + part.end
        rows = _rows(prompts[first:end], begin + part.begin, begin + part.stop, packs=packs)
        rows = replace(rows, first=first)
        if speaking and part.ended:
            yield first, _read(runner, replace(rows, chosen=_last(rows)[: part.ended]))
        else:
            _read(runner, rows)


def prompt_passes(
    lengths: Seq[int], most: int, *, packs: bool, pads: bool
) -> Iterator[PromptSlice]:
    """The passes that read prompts of ascending ``lengths``, of ``most`` tokens each.

    Args:
        lengths: of what is left of them, at least 1.
        most: tokens of a pass, holes included.
        packs: whether holes need not be computed.
        pads: whether there may be any (``similar_lengths``).
    """
    before = [0, *accumulate(lengths)]

    def packed(first: int, end: int) -> int:
        return before[end] - before[first]

    def padded(first: int, end: int) -> int:
        return (end - first) * lengths[end - 1]

    short = sum(length <= _WIDE for length in lengths) if packs else len(lengths)
    runs = [(0, short)] if packs else similar_lengths(lengths, pads=pads)
    for begin, end in runs:
        for first, stop in even_runs(begin, end, packed if packs else padded, most):
            longest = lengths[stop - 1]
            pieces = -(-longest // most)  # more than one only of a row alone
            for piece in range(pieces):
                at, to = (longest * part // pieces for part in (piece, piece + 1))
                yield PromptSlice(first, stop, at, to, (stop - first) * (piece == pieces - 1))
    yield from _columns(lengths, short, most)


def _columns(lengths: Seq[int], first: int, most: int) -> Iterator[PromptSlice]:
    """Rows from ``first`` on, all together: a few columns of each read only the keys before them,
    where a whole text at once would have attention compute what its mask then hides."""
    begin = 0
    while first < len(lengths):
        stop = max(begin + 1, begin + most // (len(lengths) - first))
        stop = min(stop, lengths[-1])
        ended = sum(length <= stop for length in lengths[first:])
        yield PromptSlice(first, len(lengths), begin, stop, ended)
        first, begin = first + ended, stop


def even_runs(
    begin: int, end: int, tokens: Callable[[int, int], int], most: int
) -> list[tuple[int, int]]:
    """Rows ``begin .. end - 1`` in as few groups as can be, the largest as small as can be.

    Args:
        begin, end: of all rows.
        tokens: of some neighbours.
        most: tokens of a group; a row that has more is one by itself.
    """
    fewest = len(_filled(begin, end, tokens, most))
    least, enough = 1, most
    while least < enough:
        middle = (least + enough) // 2
        if len(_filled(begin, end, tokens, middle)) <= fewest:
            enough = middle
        else:
            least = middle + 1
    return _filled(begin, end, tokens, enough)


def _filled(
    begin: int, end: int, tokens: Callable[[int, int], int], most: int
) -> list[tuple[int, int]]:
    """The same rows in groups that take as many as they may, and at least one."""
    groups = []
    for stop in range(begin + 1, end + 1):
        if stop == end or tokens(begin, stop + 1) > most:
            groups.append((begin, stop))
            begin = stop
    return groups


def _rows(prompts: Seq[Seq[int]], begin: int, stop: int, *, packs: bool) -> Rows:
    parts = [list(prompt[begin:stop]) for prompt in prompts]
    counts = list(map(len, parts))
    width, ragged = max(counts), min(counts) < max(counts)
    return Rows(
        mx.array([part + part[-1:] * (width - len(part)) for part in parts], mx.int32),
        mx.full(len(parts), begin, mx.int32),
        begin + width,
        uniform=True,
        counts=mx.array(counts, mx.int32) if ragged else None,
        packing=TokenPacking.of(counts, sum(counts)) if ragged and packs else None,
    )


def _last(rows: Rows) -> mx.array:
    """[B] int32, the last token of each row among all that are computed."""
    count, width = rows.tokens.shape
    counts = mx.full(count, width, mx.int32) if rows.counts is None else rows.counts
    if rows.packing is not None:
        return mx.cumsum(counts) - 1
    return mx.arange(count, dtype=mx.int32) * width + counts - 1


def _read(runner: ModelRunner, rows: Rows) -> mx.array:
    """Its logits, perhaps not computed: who keeps them makes the next pass copy the slots."""
    logits = runner.begin(rows)
    runner.proceed()
    return logits
