"""``ways``: what has to be read behind a prompt to score labels that go on beyond a first token.

What a label's tokens score is read along all of them but the last. Labels of which one begins as
another does share that::

    labels     a b c     a b     a b d e     f     g h
    read       a b d (which scores the first three)    g        the last token of none
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

Tokens = Seq[int]


@dataclass(frozen=True)
class LabelPath:
    """Tokens behind one prompt.

    Attributes:
        tokens: at least one.
        labels: the numbers of those that are scored along them.
    """

    tokens: list[int]
    labels: list[int]


def ways(labels: Seq[Tokens]) -> list[LabelPath]:
    """The ways that score all labels of more than one token."""
    longer = [number for number, label in enumerate(labels) if len(label) > 1]
    found: list[LabelPath] = []
    # Whatever goes on from a beginning stands right before it in this order.
    for number in sorted(longer, key=lambda number: list(labels[number][:-1]), reverse=True):
        tokens = list(labels[number][:-1])
        if found and found[-1].tokens[: len(tokens)] == tokens:
            found[-1].labels.append(number)
        else:
            found.append(LabelPath(tokens, [number]))
    return found
