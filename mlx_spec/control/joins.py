"""What newcomers cost the drafter: it reads a row's text before the row's first draft.

Where rows come and go quickly that is a large part of what drafting costs, and no single step's
price shows it; so it is spread over all steps that draft.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence as Seq

from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row, evidence_of, known_evidence


class ReadingCost:
    """Seconds that a drafter takes to read one newcomer's text. Thread-safe; shared by a pair."""

    NEWEST = 0.3  # share of the newest measurement

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """The usual ones; 0 while nothing is known."""
        return self._seconds

    def add(self, seconds: float) -> None:
        """Count one more text."""
        with self._lock:
            weight = self.NEWEST if self._seconds else 1.0
            self._seconds += weight * (seconds - self._seconds)


class JoinCost:
    """The rate of newcomers of one decoder, times what one of them costs."""

    NEWEST = 0.05  # share of the newest step in the rate of joining
    MOST = 5.0  # a guess from a step's time is at most this times the usual step

    def __init__(self, reading: ReadingCost, source: str = "") -> None:
        self._reading, self._source = reading, source
        self._rate = 0.0
        # Spent on texts that are still being read: measured, and guessed from slow steps.
        self._measured = self._guessed = 0.0
        self._all_read: Seq[Row] = ()  # rows of the last step, if each is counted and read

    @property
    def seconds(self) -> float:
        """Expected extra seconds of a step with a draft."""
        return self._rate * self._reading.seconds

    def to_read(self, rows: Seq[Row]) -> float:
        """Seconds to read those of ``rows`` that were never drafted for."""
        known = [known_evidence(row, self._source) for row in rows]
        unread = sum(evidence is None or not evidence.drafted for evidence in known)
        return self._reading.seconds * unread

    def observe(self, report: StepReport, usual: float | None) -> None:
        """Learn from one step; ``usual`` is what such a step costs without newcomers.

        A step whose reading was not measured apart is not clean, and what it took beyond the
        usual is taken for reading.
        """
        new, read = (0, 0) if report.rows == self._all_read else self._newcomers(report)
        self._rate += self.NEWEST * (new - self._rate)
        self._measured += report.reading
        if report.clean:
            self._guessed = 0.0
        elif usual and not report.reading:
            self._guessed += min(max(report.seconds - usual, 0.0), self.MOST * usual)
        spent = self._measured + self._guessed
        if read and spent:
            self._measured = self._guessed = 0.0
            self._reading.add(spent / read)

    def _newcomers(self, report: StepReport) -> tuple[int, int]:
        """Rows that were not counted yet, and those whose text was read for this step."""
        new = read = drafted = 0
        for row, length in zip(report.rows, report.lengths, strict=True):
            evidence = evidence_of(row, self._source)
            if not evidence.counted:
                evidence.counted = True
                new += 1
            if length and not evidence.drafted:
                evidence.drafted = True
                read += 1
            drafted += evidence.drafted
        self._all_read = list(report.rows) if drafted == len(report.rows) else ()
        return new, read
