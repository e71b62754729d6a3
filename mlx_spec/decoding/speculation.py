"""``Speculation``: what guesses for a decoder's rows, how far, and at what price."""

from __future__ import annotations

from mlx_spec.control.demand import RowDemand
from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.decoding.drafters.registry import DraftParts
from mlx_spec.decoding.members import MARGIN
from mlx_spec.decoding.prices import Measuring
from mlx_spec.decoding.setup import (
    PolicyParts,
    make_drafter,
    make_policy,
    may_be_filled,
    may_be_read,
    most_draft_tokens,
    only_given,
)
from mlx_spec.sequence import Sequence


class Speculation:
    """Drafter, policy and prices, as the options ask for them.

    Args:
        parts: what a drafter may be made of.
        drafter: one that somebody made, instead.
        policy: chooses draft lengths, instead of what the options say.
        demand: requests that want a row, where somebody knows of them.

    Attributes:
        drafter, policy: those that are used.
        most: tokens of the longest draft.
        measuring: times what they choose by.
    """

    def __init__(
        self,
        parts: DraftParts,
        drafter: Drafter | None = None,
        policy: DraftLengthPolicy | None = None,
        demand: RowDemand | None = None,
    ) -> None:
        runner, config = parts.runner, parts.speculation
        # Of a drafter that somebody made nobody else knows anything.
        owners = (runner.model, parts.draft_model) if drafter is None else (self, None)
        self.drafter = drafter or make_drafter(parts)
        self.most = most_draft_tokens(self.drafter, config)
        self._given = policy is None and only_given(self.drafter, config)
        most = 0 if self._given else self.most  # nothing is timed for what is given
        adaptive = config.adaptive and policy is None
        self.measuring = Measuring(runner, self.drafter, owners, most, adaptive=adaptive)
        known = PolicyParts(
            owners,
            self.measuring.prices,
            demand,
            reads=may_be_read(config, runner.ranks),
            fills=may_be_filled(config, runner.ranks),
        )
        self.policy = policy or make_policy(self.drafter, config, known)

    def most_of(self, sequence: Sequence) -> int:
        """The most guesses that a step may verify of it."""
        return self.most if sequence.brings_guesses or not self._given else 0

    def margin(self, guesses: int) -> int:
        """Positions past a row's end that steps may still write to: the one in which it ends, and
        the one that was built on that, so many guesses and a token each."""
        return 2 * (guesses + 1) + MARGIN + self.drafter.spare
