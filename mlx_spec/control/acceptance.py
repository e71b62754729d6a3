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
from typing import TypeAlias

from mlx_spec.control import shifts
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import KnownRows, Row, RowEvidence, known_evidence
from mlx_spec.control.shifts import MEMORY, PARTS, SAYS, Run, TestedGuesses
from mlx_spec.control.tally import PositionTally


class AverageAcceptance:
    """Acceptance over all texts of a pair. Thread-safe; decoders of a pair share one.

    It starts as that of an average drafter and gives way to the first measurements.

    Attributes:
        known: whether anything was ever tested.
        looked: first guesses that were ever tested.
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
        # By position that was ever tested: accepted, and tested (from the second on, what rows' own
        # chances make of it); exchanged as one with what follows of them.
        self._evidence = ([self.USUAL[0]], [self.USUAL[1]])
        self._profile = self._made(*self._evidence)
        self._untested, self.looked = 0, 0.0
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
        """Count what a step tested, by position, as far as it went; from the second on, by rows'
        own chances."""
        with self._lock:
            memory, most, (past, seen) = self.MEMORY, self.MOST_EVIDENCE, self._evidence
            new_places = [0.0] * (len(tested) - len(past))
            past, seen = past + new_places, seen + new_places
            right, looked = [memory * old for old in past], [memory * old for old in seen]
            for place, new in enumerate(tested):
                # A wide batch tests so much in a step that nothing later would be heard; of what
                # it did not test it says nothing.
                keep = 1.0 - new / most
                keep = memory if keep > memory else keep if keep > 0.0 else 0.0
                right[place] = keep * past[place] + accepted[place]
                looked[place] = keep * seen[place] + new
            evidence = right, looked
            self._evidence, self._profile = evidence, self._made(*evidence)
            self._untested, self.known = 0, True
            self.looked += tested[0]

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
        last, link, fall = 1.0, self.LINK, self.FALL
        profile = [last]
        for right, expected in zip(accepted[1:], tested[1:], strict=True):
            last = (right + link * (fall * last)) / (expected + link)
            profile.append(last)
        for _ in range(self.POSITIONS - len(profile)):
            last *= fall
            profile.append(last)
        return tuple(profile)


class AcceptanceEstimate:
    """Chances of the rows of one decoder, as far as one drafter guesses for them."""

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
        self._known = KnownRows(source)
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
        records = self._known.of(report.rows)
        if report.work.length:
            self._count(report, records)
            return
        for record in records:
            record.fade(self.FADING)
        self.average.fade()

    def _count(self, report: StepReport, records: Seq[TestedGuesses]) -> None:
        """Row by row, and of all."""
        tally = PositionTally(self.average.profile, report.work.length)
        better, worse = self._count_rows(report, records, tally)
        of_first, expected = tally.by_position()
        if of_first:
            self.average.add(of_first, expected)
            for run, said in ((self._rise, better), (self._fall, worse)):
                if run.add(said, of_first[0], expected[0], 0.0):
                    self._all_moved(records, run)

    def _count_rows(
        self, report: StepReport, records: Seq[TestedGuesses], tally: PositionTally
    ) -> tuple[float, float]:
        """Of each row; what all say for odds that have risen, and fallen.

        This and what follows is the work of a step that grows with rows: nothing is called.
        """
        prior, beside = self._prior, self.BESIDE
        usually, says, last_part = prior * self.average.chance, SAYS, PARTS - 1
        passed, parts, numbers = tally.passed, tally.parts, tally.numbers
        fallen, stood, chances = tally.fallen, tally.stood, tally.chances
        better = worse = 0.0
        shown: list[Shown] = []
        for record, length, accepted in zip(records, report.lengths, report.accepted, strict=True):
            if accepted < length:
                tested = accepted + 1
                if not tested:
                    continue
                fallen[tested] += 1
            elif length:
                tested = length
                stood[tested] += 1
            else:
                record.fade(beside)
                continue
            usual = passed[tested]
            chance = (record.accepted + usually) / (record.usual + prior)
            if chance > 1.0:
                chance = 1.0
            chances[tested] += chance
            part = int(chance * parts[tested])
            up, up_last, down, down_last = says[part if part < last_part else last_part]
            right = numbers[accepted]
            up *= right
            down *= right
            if accepted < tested:
                up += up_last
                down += down_last
            better += up
            worse += down
            shown.append((record, right, numbers[tested], usual, up, down))
        _remember(shown)
        return better, worse

    def _all_moved(self, records: Seq[TestedGuesses], run: Run) -> None:
        """All texts have become others: the average has, and whoever goes with it."""
        self.average.renew(*run.believed[:2])
        up = run is self._rise
        for record in records:
            own = record.rise if up else record.fall
            if own.score:
                record.believe(own)
        self._rise.restart()
        self._fall.restart()

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
        records = self._known.of(rows)
        self._weigh(records)
        prior, parts = self._prior, self.ALIKE
        usually = prior * self.average.chance
        known: dict[int, tuple[float, ...]] = {}
        found = []
        for record in records:
            chance = round((record.accepted + usually) / (record.usual + prior) * parts)
            reach = known.get(chance)
            if reach is None:
                reach = tuple(accumulate(self._profiled(chance / parts, most), mul))
                known[chance] = reach
            found.append(reach)
        return found

    def _weigh(self, records: Seq[TestedGuesses]) -> None:
        """How far rows differ: the variance of their records beyond that of their luck."""
        beyond = weight = 0.0
        luck = 1.0 / (1.0 + MEMORY)  # old tokens weigh less, and less still squared
        chance = self.average.chance
        for record in records:
            tested = record.tested
            if tested > 1.0:
                expected = chance * record.usual
                one = expected * (1.0 - expected / tested)
                beyond += (record.accepted - expected) ** 2 - luck * one
                weight += tested * one
        keep = self.SPREAD_MEMORY
        self._spread = [keep * self._spread[0] + beyond, keep * self._spread[1] + weight]
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


Shown: TypeAlias = tuple[TestedGuesses, float, float, float, float, float]
"""A row's record; what stood, was tested, and was usual of it; what that says for odds that have
risen, and fallen."""


def _remember(shown: Seq[Shown]) -> None:
    """Add to each row's record, and to both of its runs in line (``Run.add``)."""
    keep, most = MEMORY, shifts.BOUND
    for record, accepted, tested, usual, up, down in shown:
        rise, fall = record.rise, record.fall
        before = rise.score
        if (score := before + up) > 0.0:
            rise.score = score
            if before:
                rise.accepted += accepted
                rise.tested += tested
                rise.usual += usual
            else:
                rise.accepted, rise.tested, rise.usual = accepted, tested, usual
            if score > most:
                record.believe(rise)
                continue
        elif before:
            rise.score = 0.0
        before = fall.score
        if (score := before + down) > 0.0:
            fall.score = score
            if before:
                fall.accepted += accepted
                fall.tested += tested
                fall.usual += usual
            else:
                fall.accepted, fall.tested, fall.usual = accepted, tested, usual
            if score > most:
                record.believe(fall)
                continue
        elif before:
            fall.score = 0.0
        record.accepted = keep * record.accepted + accepted
        record.tested = keep * record.tested + tested
        record.usual = keep * record.usual + usual
