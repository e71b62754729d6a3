"""``PredictedDrafter``: where a request says what its text is likely to be, that is the draft.

An edited file is mostly the file as it was. The caller gives it (OpenAI's ``prediction``), and the
row's text is followed through it; where the two part, the next few tokens that both have in common
say where it goes on::

    predicted   a b c d e f g h        said   a b X d e f ...
    place       ^^^^^    ^^^^^^               a b: c is guessed; X: nothing; d e: f is guessed

It costs no pass of any model. What is known of a row belongs to its ``Sequence`` alone: no other
row ever sees a prediction, nor is trusted less for one that was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate, takewhile
from operator import mul
from weakref import WeakKeyDictionary

from mlx_spec.decoding.drafters.guesses import Guess
from mlx_spec.decoding.drafters.on_host import HostDrafter
from mlx_spec.decoding.drafters.suffixes.confirmation import WORTH, Confirmation
from mlx_spec.decoding.drafters.suffixes.trust import Trust
from mlx_spec.sequence import Sequence

# Tokens in a row that came as predicted, in groups, and how often the next one does, to begin with.
RUNS = (1, 2, 4, 8, 16)
USUAL = (0.5, 0.5, 0.7, 0.85, 0.93, 0.97)
FLOOR = 0.3  # chance of a whole draft under which it is not continued
LOOKED_AHEAD = 32  # tokens among which one alone is enough to find the place again


class PredictedText:
    """What a text is likely to be, and where each two tokens of it stand. Never changed.

    Args:
        tokens: of it.
    """

    def __init__(self, tokens: Seq[int]) -> None:
        self.tokens = tuple(tokens)
        self._behind: dict[tuple[int, int], list[int]] = {}
        for place, pair in enumerate(zip(self.tokens, self.tokens[1:], strict=False), start=2):
            self._behind.setdefault(pair, []).append(place)

    def place_after(self, last: Seq[int], near: int) -> int | None:
        """Where a text goes on that ends in these tokens.

        Args:
            last: at least one token.
            near: where it was expected to go on; of several places the next one counts.
        """
        if len(last) > 1:
            places = self._behind.get((last[-2], last[-1]))
            if places is not None:
                return next((place for place in places if place >= near), places[-1])
        window = self.tokens[near : near + LOOKED_AHEAD]
        return near + window.index(last[-1]) + 1 if last[-1] in window else None


class PredictedRow:
    """How far one row has come in its prediction.

    Args:
        text: the prediction.

    Attributes:
        confirmation: whether its guesses are verified.
    """

    def __init__(self, text: PredictedText) -> None:
        self.confirmation = Confirmation(verified=True)
        self._text, self._trust = text, Trust(RUNS, USUAL)
        self._place: int | None = 0  # of the next token; None where nobody knows
        self._near = 0  # where it was known last
        self._run = 0  # tokens in a row that came as predicted
        self._read = 0

    def hear(self, sequence: Sequence) -> None:
        """Follow what the row has said since."""
        for place in range(self._read, len(sequence.tokens)):
            self._follow(sequence.tokens[place], sequence.tokens[max(0, place - 1) : place + 1])
        self._read = len(sequence.tokens)

    def caught_up(self, sequence: Sequence) -> bool:
        """Whether all that is known of the row was followed."""
        return self._read == len(sequence.tokens)

    def guesses(self, most: int) -> list[Guess]:
        """What is likely to follow, at most so many tokens."""
        if self._place is None:
            return []
        tokens = self._text.tokens[self._place : self._place + most]
        chances = [self._trust.chance(self._run + ahead, 1.0) for ahead in range(len(tokens))]
        worth = [product >= FLOOR for product in accumulate(chances, mul)]
        count = worth.index(False) if False in worth else len(worth)
        return list(zip(tokens[:count], chances[:count], strict=True))

    def promise(self, most: int) -> float:
        """Tokens that the next step is likely to gain."""
        if not self.confirmation.verified:
            return 0.0
        return float(sum(accumulate((chance for _, chance in self.guesses(most)), mul)))

    def _follow(self, token: int, last: Seq[int]) -> None:
        expected = self._expected()
        right = None if expected is None else token == expected
        self.confirmation.judge(right)
        if right is not None:
            self._trust.learn(self._run, 1.0, right)
        if right:
            assert self._place is not None
            self._place, self._run = self._place + 1, self._run + 1
        else:
            self._place, self._run = self._text.place_after(last, self._near), 0
        self._near = self._near if self._place is None else self._place

    def _expected(self) -> int | None:
        if self._place is None or self._place >= len(self._text.tokens):
            return None
        return self._text.tokens[self._place]


class PredictedDrafter(HostDrafter):
    """Proposes what rows' callers have predicted; rows without a prediction have no guess.

    Args:
        most: longest draft.
        vocabulary: size of the target's; a prediction may have been encoded into more.
    """

    def __init__(self, most: int, vocabulary: int) -> None:
        self._most, self._vocabulary = most, vocabulary
        self._rows: list[Sequence] = []
        self._known: WeakKeyDictionary[Sequence, PredictedRow] = WeakKeyDictionary()

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Who comes back goes on where it was."""
        super().join(sequences, longest)
        self._rows += sequences
        for sequence in sequences:
            if sequence.prediction is not None and sequence not in self._known:
                self._known[sequence] = PredictedRow(sequence.prediction)

    def keep(self, order: Seq[int]) -> None:
        """Rows as they stand; what is known of the others goes with them."""
        self._hear()
        self._rows = [self._rows[row] for row in order]

    def _worthwhile(self) -> bool:
        known = [self._known[row] for row in self._rows if row in self._known]
        promised = sum(row.promise(self._most) for row in known)
        return promised > 0 and promised >= WORTH * len(self._rows)

    def _guess(self, sequence: Sequence, most: int) -> list[Guess]:
        """What follows in the row's prediction."""
        known = self._known.get(sequence)
        if known is None or not known.confirmation.verified or not known.caught_up(sequence):
            return []
        guesses = known.guesses(most)
        return list(takewhile(lambda guess: guess[0] < self._vocabulary, guesses))

    def _hear(self) -> None:
        for row in self._rows:
            if row in self._known:
                self._known[row].hear(row)
