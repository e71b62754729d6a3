"""How many slots to have, and how long: from what there is and what is needed. Knows no mlx.

Slots double and halve, lengths grow by half, so that rows that come and go one by one are copied
O(1) times a row, and a text that grows O(1) times a token. Memory that nobody needs goes back.
"""

from __future__ import annotations

from dataclasses import dataclass

POSITION_STEP = 256


@dataclass(frozen=True)
class SlotSize:
    """What slots a caller that accounts for bytes asks for.

    Attributes:
        slots: rows that are needed.
        most_slots: rows that may be held, to spare copies.
        positions: most tokens of a row.
    """

    slots: int
    most_slots: int
    positions: int


def whole_steps(positions: int) -> int:
    """The least multiple of ``POSITION_STEP`` that is not below.

    >>> whole_steps(257)
    512
    """
    return -(-positions // POSITION_STEP) * POSITION_STEP


def grown(positions: int, wanted: int, most: int | None = None) -> int:
    """How long slots of ``positions`` tokens become where ``wanted`` are, which is more.

    Args:
        most: tokens of a row that bytes were accounted for; None where nobody did.
    """
    roomy = whole_steps(max(wanted, positions + positions // 2))
    return roomy if most is None else max(wanted, min(roomy, most))


def fitted(slots: int, positions: int, size: SlotSize, needed: int) -> tuple[int, int]:
    """What becomes of slots and positions, for a caller that accounts for bytes.

    Never more than ``most_slots * positions`` of the size is held, and not that much before it is
    needed.

    Args:
        slots, positions: that there are.
        size: that is asked for.
        needed: tokens of the longest row now.
    """
    most = size.positions
    count = _count(slots, size.slots, size.most_slots)
    length = max(needed, min(most, max(whole_steps(needed), positions)))
    # A longest row that leaves makes ``most`` a little less: no reason to copy everything.
    near = most < positions <= most * 5 // 4
    if near and count * positions <= size.most_slots * most:
        length = positions
    return count, length


def _count(have: int, needed: int, most: int) -> int:
    """How many slots to have where so many are needed."""
    if have < needed:
        return max(needed, min(most, 2 * have))
    if have > 4 * needed:
        return max(needed, min(most, 2 * needed))
    return max(needed, min(most, have))
