"""What a stage decided, over all records: whether its question told them apart at all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

# Of fewer records nothing can be said; one verdict for this share of them is suspicious.
_LEAST, _NEARLY_ALL = 10, 0.95


@dataclass(frozen=True)
class Verdict:
    """What the model's answer decided for one record.

    Attributes:
        outcome: "dropped", "label 'code'".
        measure: what was compared: "p(no)".
        value: its value.
        asked: what did not tell the records apart, should all get it: "the question does".
        harmless: nearly all records may well get it; all of them are still worth a word.
    """

    outcome: str
    measure: str
    value: float
    asked: str
    harmless: bool = False


@dataclass
class Verdicts:
    """Counts of a run's verdicts."""

    counts: Counter[str] = field(default_factory=Counter)
    _last: dict[str, Verdict] = field(default_factory=dict)
    _ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, verdict: Verdict) -> None:
        low, high = self._ranges.get(verdict.outcome, (verdict.value, verdict.value))
        self._ranges[verdict.outcome] = min(low, verdict.value), max(high, verdict.value)
        self._last[verdict.outcome] = verdict
        self.counts[verdict.outcome] += 1

    def merge(self, other: Verdicts) -> None:
        """Count those of another part of the run."""
        for outcome, (low, high) in other._ranges.items():
            ours = self._ranges.get(outcome, (low, high))
            self._ranges[outcome] = min(low, ours[0]), max(high, ours[1])
        self._last |= other._last
        self.counts += other.counts

    def warning(self) -> str | None:
        """One line if nearly all records got one verdict, else None."""
        total = self.counts.total()
        if total < _LEAST:
            return None
        (outcome, count), verdict = self.counts.most_common(1)[0], self._last
        if count < total * (1 if verdict[outcome].harmless else _NEARLY_ALL):
            return None
        low, high = self._ranges[outcome]
        last, where = verdict[outcome], "everywhere" if count == total else "in these"
        return (
            f"{outcome} {count} of {total}; {last.measure} was {low:.2f}-{high:.2f} {where}: "
            f"{last.asked} not separate them"
        )
