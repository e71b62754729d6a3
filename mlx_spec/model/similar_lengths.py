"""Which prompts are read together: neighbours of similar length waste little when padded alike."""

from __future__ import annotations

from collections.abc import Sequence as Seq


def similar_lengths(lengths: Seq[int], *, pads: bool = True) -> list[tuple[int, int]]:
    """Split ascending lengths into runs ``(begin, end)`` that waste little when padded alike.

    Without ``pads`` nothing is padded: those of a run are equal.
    """
    runs: list[tuple[int, int]] = []
    begin = 0
    for end in range(1, len(lengths) + 1):
        most = 32 + lengths[begin] * 3 // 2 if pads else lengths[begin]
        if end == len(lengths) or lengths[end] > most:
            runs.append((begin, end))
            begin = end
    return runs
