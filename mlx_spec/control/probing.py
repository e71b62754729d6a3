"""``find_probe``: the step that tells of a drafter that is left alone, and loses least by it.

One guess of those rows of which least is known, for as many rows as cost little more than one. Or
the best step with a draft, where that promises nearly what a plain one does: then it loses nearly
nothing, however much is computed, and tells most.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from mlx_spec.control.allocation import fill
from mlx_spec.control.drafting import CostlyDraft, Prospect
from mlx_spec.control.looked_up import by_need
from mlx_spec.control.row import Row

WIDE = 1.3  # times what a probe of one row costs, that one of several may
FIRST = 0.1  # of a plain step, that one may cost while next to nothing is known
LEAST_LOST = 0.2  # of what a probe loses where nothing is accepted


@dataclass(frozen=True)
class Probe:
    """A step.

    Attributes:
        lengths: guesses of each row.
        lost: seconds, beyond those that its tokens are likely to be worth.
    """

    lengths: list[int]
    lost: float


def find_probe(rows: Seq[Row], view: Prospect, drafter: CostlyDraft) -> Probe:
    """The better one of both.

    Args:
        rows: the batch.
        view: what is promised, for plain steps too.
        drafter: the one that is asked.
    """
    few, best = _few(rows, view, drafter), view.best
    if view.picked or not best.guesses:
        return few
    beyond = best.seconds - view.prices.verify[0] + drafter.risk(len(rows) + best.guesses)
    gained = (best.tokens - len(rows)) / view.plain
    lost = max(beyond - gained, LEAST_LOST * beyond)
    if lost >= few.lost:
        return few
    return Probe(fill([row[: best.passes] for row in view.reaching], best, by_need(rows)), lost)


def _few(rows: Seq[Row], view: Prospect, drafter: CostlyDraft) -> Probe:
    """One guess of a few rows, or of one."""
    verify, draft, reaching = view.prices.verify, view.prices.draft, view.reaching
    drafting, count = draft[1] - draft[0] - verify[0], len(rows)
    guesses = 1 if view.prices.packs else count

    def costs(guesses: int) -> float:
        return verify[guesses] + drafting + drafter.risk(count + guesses)

    most = WIDE * costs(1)
    if drafter.new:
        most = max(most, FIRST * verify[0])
    while guesses < count and costs(guesses + 1) <= most:
        guesses += 1
    chosen = set(drafter.strangest(rows)[:guesses])
    # What it loses as far as is known: next to nothing where drafting nearly pays.
    gained = sum(reaching[row][0] for row in chosen if reaching[row]) / view.plain
    lost = costs(guesses)
    lengths = [int(bool(reaching[row]) and row in chosen) for row in range(count)]
    return Probe(lengths, max(lost - gained, LEAST_LOST * lost))
