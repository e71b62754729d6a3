"""How often drafts are accepted: by row, and by position of the guess.

A row's next guess stands with its own chance c, which leans on the average of all texts. Those
after it stand less often, by a profile f that all rows share::

    chance of guess j, if those before it stand:   c f_j        f = 1, .85, .75, ...

The profile is learned of what rows are expected to do by their own chance. Counted without that it
would rise where rows differ: far positions are only reached by those who are easy to guess.

Only positions really tested count: with a accepted of k drafted, min(a + 1, k) were tested and
nothing is known of those past the first rejection.

Averages are long, so that luck moves them little. Where a text becomes another one they would be
wrong for as long; so what surprises for longer than luck does is believed at once (``shifts``), of
a row, or of all.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence as Seq
from itertools import accumulate
from operator import mul

from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row, RowEvidence, evidence_of, known_evidence
from mlx_spec.control.shifts import Run, surprise


class AverageAcceptance:
    """Acceptance over all texts of a pair. Thread-safe; decoders of a pair share one.

    It starts as that of an average drafter and gives way to the first measurements.

    Attributes:
        known: whether anything was ever tested.
    """

    POSITIONS = 12  # those further on are as the last of these
    MEMORY = 0.98  # share of the past evidence that each step keeps
    # While nothing is drafted, old evidence fades: texts change, and a probe must be heard.
    FADING = 0.95
    LEAST_EVIDENCE, MOST_EVIDENCE = 4.0, 100.0
    USUAL = (2.0, 3.0)  # accepted and tested, of a drafter that nobody knows
    # What is not known of a position: a little less than of the one before, and what that weighs
    # in tested tokens.
    FALL, LINK = 0.93, 4.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        none = [0.0] * (self.POSITIONS - 1)
        # By position: accepted, and tested (from the second on, what rows' own chances make of
        # it); exchanged as one with what follows of them.
        self._evidence = ([self.USUAL[0], *none], [self.USUAL[1], *none])
        self._profile = self._made(*self._evidence)
        self._untested = 0
        self.known = False

    @property
    def chance(self) -> float:
        """Of an average text's next guess, in [0, 1]."""
        accepted, tested = self._evidence
        return accepted[0] / tested[0]

    @property
    def profile(self) -> tuple[float, ...]:
        """By position: times which a guess stands of what the first one does, if those before it
        stand."""
        return self._profile

    @property
    def tested(self) -> float:
        """Weight of what was tested of the first position."""
        return self._evidence[1][0]

    @property
    def untested(self) -> int:
        """Steps since a draft was last tested."""
        return self._untested

    def add(self, accepted: Seq[float], tested: Seq[float]) -> None:
        """Count what a step tested, by position; from the second on, by rows' own chances."""
        with self._lock:
            past = self._evidence
            # A wide batch tests so much in a step that nothing later would be heard.
            keep = min(self.MEMORY, max(0.0, 1.0 - tested[0] / self.MOST_EVIDENCE))
            evidence = (
                [keep * old + new for old, new in zip(past[0], accepted, strict=True)],
                [keep * old + new for old, new in zip(past[1], tested, strict=True)],
            )
            self._evidence, self._profile = evidence, self._made(*evidence)
            self._untested, self.known = 0, True

    def renew(self, accepted: float, tested: float) -> None:
        """Believe what was lately seen of first guesses, and little of what was before; positions
        beside each other are as they were."""
        with self._lock:
            past = self._evidence
            keep = min(1.0, self.LEAST_EVIDENCE / past[1][0])
            first = keep * past[0][0] + accepted, keep * past[1][0] + tested
            evidence = ([first[0], *past[0][1:]], [first[1], *past[1][1:]])
            self._evidence, self._profile = evidence, self._made(*evidence)

    def fade(self) -> None:
        """Count a step that tested nothing."""
        with self._lock:
            accepted, tested = self._evidence
            if tested[0] > self.LEAST_EVIDENCE:
                by = self.FADING
                self._evidence = ([by * n for n in accepted], [by * n for n in tested])
            self._untested += 1

    def _made(self, accepted: Seq[float], tested: Seq[float]) -> tuple[float, ...]:
        profile, link = [1.0], self.LINK
        for right, expected in zip(accepted[1:], tested[1:], strict=True):
            usual = self.FALL * profile[-1]
            profile.append((right + link * usual) / (expected + link))
        return tuple(profile)


class AcceptanceEstimate:
    """Chances of the rows of one decoder, as far as one drafter guesses for them."""

    MEMORY = 0.93
    # Of a row's evidence while nobody is drafted for, and while others are: then trying it again
    # costs little, but so many would be tried.
    FADING, BESIDE = 0.95, 0.985
    # How many tested tokens the average of all weighs: more where rows hardly differ, as far as
    # that can be told from what their own luck makes of equal rows.
    PRIOR_TOKENS, LEAST_PRIOR, MOST_PRIOR = 6.0, 3.0, 60.0
    SPREAD_MEMORY, SPREAD_BEGINS = 0.98, 100.0  # of that, a decision; tested tokens squared
    ALIKE = 64  # rows share their numbers whose chances are the same to one of so many parts
    SURE = 0.995  # nothing is likelier

    def __init__(self, average: AverageAcceptance, source: str = "") -> None:
        self.average, self._source = average, source
        # Squares of what rows differ by beyond their luck, and of what they were tested.
        self._spread = [self.SPREAD_BEGINS / (self.PRIOR_TOKENS + 1), self.SPREAD_BEGINS]
        self._prior = self.PRIOR_TOKENS
        self._rise, self._fall = Run(), Run()  # of all rows; they count first guesses

    @property
    def surprise(self) -> float:
        """How much likelier than as believed it is that guesses stand oftener, as a logarithm."""
        return self._rise.score

    def observe(self, report: StepReport) -> None:
        """Count what one step tested."""
        source = self._source
        if not report.work.length:
            for row in report.rows:
                self._fade(known_evidence(row, source), self.FADING)
            self.average.fade()
            return
        profile = self.average.profile
        positions, passed = len(profile), [0.0, *accumulate(profile)]
        ended = [0] * (positions + 1)  # rows whose last tested position is this
        chances = [0.0] * (positions + 1)  # theirs
        right = [0] * (positions + 1)  # and those that were right there too
        memory, better, worse = self.MEMORY, 0.0, 0.0
        for row, length, accepted in zip(report.rows, report.lengths, report.accepted, strict=True):
            tested = accepted + 1 if accepted < length else length
            if not length:
                self._fade(known_evidence(row, source), self.BESIDE)
            elif tested > 0:
                evidence = evidence_of(row, source)
                last = min(tested, positions)
                ended[last] += 1
                right[last] += accepted >= last
                chance = min(self._chance(evidence), 1.0)
                chances[last] += chance
                usual = passed[last] + (tested - last) * profile[-1]
                up, down = surprise(chance * usual / tested, accepted, tested)
                better += up
                worse += down
                rise, fall = evidence.rise, evidence.fall
                if (up > 0.0 or rise.score) and rise.add(up, accepted, tested, usual):
                    self._believe(evidence, rise)
                elif (down > 0.0 or fall.score) and fall.add(down, accepted, tested, usual):
                    self._believe(evidence, fall)
                else:
                    evidence.accepted = memory * evidence.accepted + accepted
                    evidence.tested = memory * evidence.tested + tested
                    evidence.usual = memory * evidence.usual + usual
        if any(ended):
            of_first, expected = _by_position(ended, right, chances)
            self.average.add(of_first, expected)
            for run, said in ((self._rise, better), (self._fall, worse)):
                if run.add(said, of_first[0], expected[0], 0.0):
                    self._all_moved(report.rows, run)

    def _all_moved(self, rows: Seq[Row], run: Run) -> None:
        """All texts have become others: the average has, and whoever goes with it."""
        self.average.renew(*run.believed[:2])
        up = run is self._rise
        for row in rows:
            evidence = known_evidence(row, self._source)
            if evidence is not None:
                own = evidence.rise if up else evidence.fall
                if own.score:
                    self._believe(evidence, own)
        self._rise.restart()
        self._fall.restart()

    def _believe(self, evidence: RowEvidence, run: Run) -> None:
        """What has come of a row since it began to surprise, and nothing before."""
        evidence.accepted, evidence.tested, evidence.usual = run.believed
        evidence.rise.restart()
        evidence.fall.restart()

    def _fade(self, evidence: RowEvidence | None, by: float) -> None:
        if evidence is not None:
            evidence.accepted *= by
            evidence.tested *= by
            evidence.usual *= by

    def tested(self, row: Row) -> float:
        """Weight of what was tested of a row."""
        evidence = known_evidence(row, self._source)
        return 0.0 if evidence is None else evidence.tested

    def chances(self, row: Row, count: int) -> tuple[float, ...]:
        """Of a row's next guesses, each if those before it stand."""
        return self._profiled(self._chance(known_evidence(row, self._source)), count)

    def reaching(self, rows: Seq[Row], most: int) -> list[tuple[float, ...]]:
        """For each row, how likely its 1st, 2nd, .. ``most``-th guess stands with all before it:
        the tokens that each is expected to bring.
        """
        self._weigh(rows)
        known: dict[int, tuple[float, ...]] = {}
        found = []
        for row in rows:
            chance = round(self._chance(known_evidence(row, self._source)) * self.ALIKE)
            reach = known.get(chance)
            if reach is None:
                reach = tuple(accumulate(self._profiled(chance / self.ALIKE, most), mul))
                known[chance] = reach
            found.append(reach)
        return found

    def _weigh(self, rows: Seq[Row]) -> None:
        """How far rows differ: the variance of their records beyond that of their luck."""
        beyond = tested = 0.0
        luck = 1.0 / (1.0 + self.MEMORY)  # old tokens weigh less, and less still squared
        chance = self.average.chance
        for row in rows:
            evidence = known_evidence(row, self._source)
            if evidence is not None and evidence.tested > 1.0:
                expected = chance * evidence.usual
                one = expected * (1.0 - expected / evidence.tested)
                beyond += (evidence.accepted - expected) ** 2 - luck * one
                tested += evidence.tested * one
        keep = self.SPREAD_MEMORY
        self._spread = [keep * self._spread[0] + beyond, keep * self._spread[1] + tested]
        least, most = self.LEAST_PRIOR, self.MOST_PRIOR
        share = max(self._spread[0], 0.0) / max(self._spread[1], 1.0)
        self._prior = min(max(1.0 / share - 1.0, least), most) if share > 0 else most

    def _chance(self, evidence: RowEvidence | None) -> float:
        """Of a row's next guess; above 1 where all of its guesses stand more often than usual."""
        average = self.average.chance
        if evidence is None:
            return average
        return (evidence.accepted + self._prior * average) / (evidence.usual + self._prior)

    def _profiled(self, chance: float, count: int) -> tuple[float, ...]:
        profile, sure = self.average.profile[:count], self.SURE
        profile += profile[-1:] * (count - len(profile))
        return tuple([min(chance * times, sure) for times in profile])


def _by_position(
    ended: Seq[int], right: Seq[int], chances: Seq[float]
) -> tuple[list[float], list[float]]:
    """Accepted, and tested, of each position, from where rows ended: index 0 is nobody's."""
    accepted, tested, rows, expected = [], [], 0, 0.0
    for place in range(len(ended) - 1, 0, -1):
        accepted.append(float(rows + right[place]))
        rows += ended[place]
        expected += chances[place]
        tested.append(expected if place > 1 else float(rows))
    return accepted[::-1], tested[::-1]
