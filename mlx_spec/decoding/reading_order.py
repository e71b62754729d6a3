"""In which order texts are read: as they came, but that short ones pass much longer ones.

A question that comes behind somebody's book would else wait until all of that is read. What a text
is held up by those that pass it is bounded by its own length: nobody waits for ever::

    reading   [======= book, 7,000 left =======]        [question, 40]  comes
    slots      n                                          n + 1
    then      [question, 40][======= book, 7,000 left =======]
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from mlx_spec.decoding.fed_rows import FedRow
from mlx_spec.model.pace import FEWEST

# What is left of a text that is passed: so many times what the newcomer has, and so many tokens.
_TIMES, _LONG = 4, 2 * FEWEST


def with_newcomers(rows: Seq[FedRow], newcomers: Seq[FedRow]) -> list[FedRow]:
    """The order in which all are read; what rows are passed by is counted in them."""
    order = list(rows)
    for new in newcomers:
        place = len(order)
        while place and _lets_pass(order[place - 1], new):
            place -= 1
        for row in order[place:]:
            row.passed += new.left
        order.insert(place, new)
    return order


def _lets_pass(row: FedRow, new: FedRow) -> bool:
    long = row.left >= max(_LONG, _TIMES * new.left)
    return long and row.passed + new.left <= row.sequence.length
