"""``Stretch``: tokens of a text that the prefix cache keeps, and whether they are sound.

Copies of one row: no later pass changes them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx

from mlx_spec.cache.layer import RowState


class SoundCheck:
    """Whether stretches that were stored together hold numbers, computed and not yet looked at.

    What comes before NaN in a pass is spoilt too, and whatever a layer cannot bear, the last one
    shows.
    """

    def __init__(self, states: Seq[RowState]) -> None:
        # By the reach of their values: that makes no array as large as a stretch.
        self.finite = mx.isfinite(mx.stack([_reach(state) for state in states]))
        self._flags: list[bool] | None = None

    def __getitem__(self, place: int) -> bool:
        if self._flags is None:
            self._flags = cast("list[bool]", self.finite.tolist())
        return self._flags[place]


def _reach(state: RowState) -> mx.array:
    """The difference of the largest and the smallest value in its last array of any."""
    last = next((array for array in reversed(state.flat) if array.size), mx.zeros(1))
    return (last.max() - last.min()).astype(mx.float32)


@dataclass(eq=False)
class Stretch:
    """Tokens ``begin .. end - 1`` of a text.

    Attributes:
        state: what is kept of them.
        key: of all tokens up to ``end``; ``before`` of those up to ``begin``.
        check, place: ``check[place]`` says whether it is sound.
        within: where it ends in the middle of a block: the key before that, and the tokens in it.
        way: what is left of it where only later ones need it; None where that is the same.
        whole: whether a text can go on from its end.
        uses: texts that did.
        followers: stretches that begin at its end.
    """

    state: RowState
    begin: int
    end: int
    key: bytes
    before: bytes
    check: SoundCheck
    place: int
    within: tuple[bytes, int] | None = None
    way: RowState | None = None
    whole: bool = True
    uses: int = 0
    followers: int = 0
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = self.state.nbytes
