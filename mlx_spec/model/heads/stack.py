"""Heads behind one another, as DeepSeek-V3 has them: each guesses one token further.

Head k at position p reads the token at p + 1 + k, and what head k - 1 made of p; it guesses the
token at p + 2 + k. So all heads stand at the same positions of the target, and what a head further
behind reads of the newest ones is guessed::

                 p = 3        p = 4        p = 5       the target has read up to 5, token 6 is known
    head 0       t4           t5           t6          guesses t7
    head 1       t5           t6           guess t7    guesses t8
    head 2       t6           guess t7     guess t8    guesses t9, and goes on alone at p = 6
                                           guess t9    (with its own state there) for t10

Its source: DeepSeek-V3 (arXiv:2412.19437), section 2.2. Where they are not chained (MiMo-V2) every
head reads the target's hidden state of p instead.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from mlx_spec.model.heads.head import Head, LastStateHead
from mlx_spec.model.heads.parts import TargetParts


class HeadStack(LastStateHead):
    """Several heads of one target, the nearest first.

    Args:
        heads: at least two.
        chained: whether each reads the states of the one before it.
    """

    def __init__(self, heads: Seq[Head], *, chained: bool = True) -> None:
        super().__init__()
        self.heads = list(heads)
        self.chained = chained

    @property
    def stages(self) -> Seq[Head]:
        """All of them."""
        return self.heads

    def check(self, parts: TargetParts) -> None:
        """Each must fit."""
        for head in self.heads:
            head.check(parts)
