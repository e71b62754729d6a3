"""How often drafts are accepted: each row's own record, leaning on the average of the pair.

Only positions really tested count: with a accepted of k drafted, min(a + 1, k) were tested and
nothing is known of those past the first rejection.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence as Seq
from operator import mul

from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row, evidence_of, known_evidence


class AverageAcceptance:
    """Acceptance over all texts of a pair. Thread-safe; decoders of a pair share one.

    It starts as that of an average drafter and gives way to the first measurements.
    """

    MEMORY = 0.98  # share of the past evidence that each step keeps
    # While nothing is drafted, old evidence fades: texts change, and a probe must be heard.
    FADING = 0.995
    LEAST_EVIDENCE = 1.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._evidence = (2.0, 3.0)  # weights of accepted and tested, exchanged as one
        self._untested = 0

    @property
    def chance(self) -> float:
        """Of an average text's next draft token, in [0, 1]."""
        accepted, tested = self._evidence
        return accepted / tested

    @property
    def untested(self) -> int:
        """Steps since a draft was last tested."""
        return self._untested

    def add(self, accepted: float, tested: float) -> None:
        """Count what a step tested, a row of it on average."""
        with self._lock:
            past = self._evidence
            self._evidence = (self.MEMORY * past[0] + accepted, self.MEMORY * past[1] + tested)
            self._untested = 0

    def fade(self) -> None:
        """Count a step that tested nothing."""
        with self._lock:
            accepted, tested = self._evidence
            if tested > self.LEAST_EVIDENCE:
                self._evidence = (self.FADING * accepted, self.FADING * tested)
            self._untested += 1


class AcceptanceEstimate:
    """Chances of the rows of one decoder, as far as one drafter guesses for them."""

    MEMORY = 0.9
    FADING = 0.99
    PRIOR_TOKENS = 3.0  # how many tested tokens the average of all weighs

    def __init__(self, average: AverageAcceptance, source: str = "") -> None:
        self._average, self._source = average, source

    def observe(self, report: StepReport) -> None:
        """Count what one step tested."""
        if report.work.length == 0:
            self._fade(report.rows)
            return
        total_accepted = total_tested = 0
        memory = self.MEMORY
        for row, length, accepted in zip(report.rows, report.lengths, report.accepted, strict=True):
            tested = accepted + 1 if accepted < length else length
            if tested > 0:
                evidence = evidence_of(row, self._source)
                evidence.accepted = memory * evidence.accepted + accepted
                evidence.tested = memory * evidence.tested + tested
                total_accepted += accepted
                total_tested += tested
        if total_tested:
            # Per row: a wide batch must not forget faster.
            count = len(report.rows)
            self._average.add(total_accepted / count, total_tested / count)

    def _fade(self, rows: Seq[Row]) -> None:
        fading = self.FADING
        for row in rows:
            evidence = known_evidence(row, self._source)
            if evidence is not None:
                evidence.accepted *= fading
                evidence.tested *= fading
        self._average.fade()

    def chances(self, rows: Seq[Row]) -> list[float]:
        """Estimated acceptance of each row's next draft token, in [0, 1]."""
        average, weight, source = self._average.chance, self.PRIOR_TOKENS, self._source
        prior = weight * average
        return [
            average
            if (evidence := known_evidence(row, source)) is None
            else (evidence.accepted + prior) / (evidence.tested + weight)
            for row in rows
        ]


def expected_tokens(chances: Seq[float], room: Seq[int], longest: int) -> list[float]:
    """Tokens that steps with draft lengths 0..``longest`` are expected to emit.

    ``1 + a + a**2 + ...`` for each row, up to the draft length or the row's ``room``: one running
    product a row, read at all lengths.
    """
    run = [1.0] * len(chances)
    tokens = [float(len(chances))]
    short = [(i, most) for i, most in enumerate(room) if most < longest]
    for length in range(1, longest + 1):
        run = list(map(mul, run, chances))
        for i, most in short:
            if most < length:
                run[i] = 0.0
        tokens.append(tokens[-1] + sum(run))
    return tokens
