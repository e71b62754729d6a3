"""``FilledDrafts``: a step of so many guesses, whose they are is decided on the device.

For a device that must not wait for the host in the middle of a step (a GPU). The number of guesses
is chosen as ever, but is expected to go to the likeliest of those that will be made::

    host      passes 3, guesses 6 of 4 rows            what usual guesses of 4 rows bring at best
    device    a .9 .8 .7   b .3 .1 .0   c .9 .5 .3   d .6 .4 .1     given   a a a . c c d

All rows are drafted for as far as the longest. What was said of their guesses, and what they were
given, comes with the results of the step.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

from mlx_spec.control.adaptive import AdaptiveDrafts, Decision
from mlx_spec.control.drafting import CostlyDraft, Prospect
from mlx_spec.control.offers import Offer, Settled
from mlx_spec.control.row import Row, cap, room_of


class FilledDrafts(AdaptiveDrafts):
    """``AdaptiveDrafts`` of steps that are filled on the device."""

    ENOUGH = 24  # rows' steps of which something was said, before that is planned by

    def _prospect(self, drafter: CostlyDraft, rows: Seq[Row], room: Seq[int]) -> Prospect:
        """While drafting, by what was said lately, once enough was; while parked nothing is."""
        view = super()._prospect(drafter, rows, room)
        known = self.drafts and drafter.surest.confidence.heard >= self.ENOUGH
        if len(rows) < 2 or not (view.prices.packs and known):
            return view
        return replace(view, best=drafter.surest.fixed_budget(len(rows), view.prices))

    def _draft(self, rows: Seq[Row], room: Seq[int], view: Prospect) -> Decision:
        decided, trials = super()._draft(rows, room, view), self._standing.trials
        if len(rows) < 2 or not view.prices.packs or decided.trials != trials:
            return decided  # a rival is tried as it was weighed
        return decided._replace(filled=True)

    def choose(self, rows: Seq[Row]) -> list[int]:
        """What each row may be given at most."""
        lengths = super().choose(rows)
        if not (self.drafts and self._standing.filled):
            return lengths
        most = cap(room_of(rows), self._standing.passes)
        return [max(own, deep) for own, deep in zip(lengths, most, strict=True)]

    def settle(self, rows: Seq[Row], offers: Seq[Offer], covered: Seq[bool]) -> Settled:
        """As many as by averages, for whoever turns out to be sure of them."""
        settled, now = super().settle(rows, offers, covered), self._standing
        if offers or not (settled.costly and now.filled):
            return settled
        room = room_of(rows)
        lengths = [min(n, most) for n, most in zip(settled.lengths, room, strict=True)]
        if not any(lengths):
            return settled
        most = [n if own else 0 for n, own in zip(cap(room, now.passes), covered, strict=True)]
        view, surest = self._view, self._drafters[self.costly].surest
        same = view is not None and len(view.reaching) == len(rows)
        weights = view.weights if same and view is not None else None
        filling = surest.filling(rows, most, sum(lengths), weights)
        return replace(settled, lengths=lengths, filling=filling)
