"""Masks of many rows and all their guesses: one position of all rows after the other.

Row of K = 3 guesses, of which the second is forbidden; 1 is a token that may stand there::

    position   0          1            2                 3
    behind     emitted    g0           g0 g1             g0 g1 g2
    mask       1001..     0110..       all: never read   all: never read

A mask costs little while the tokenizer's sorted words can be taken as a whole, and milliseconds
where each is to be looked at (a string of limited length, a pattern). So that no step waits long,
guesses that are not looked at within ``MOST_SECONDS`` are none of anybody's: a text needs only the
first mask. Nor do rows wait for each other's first masks for longer than ``FIRST_SECONDS``: those
that have none by then say nothing in this step, and come first in the next.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlx_spec.sequence import DeadEnd
from mlx_spec.structured.guide import Guide
from mlx_spec.structured.vocabulary import library

# Of a step: for what stands behind what was emitted, and then for what stands behind guesses.
FIRST_SECONDS, MOST_SECONDS = 0.1, 0.02
# With a thread or two of its own llguidance would gain nothing, and wait for them.
_CORES = os.cpu_count() or 1
_AT_ONCE = 4 * _CORES if _CORES >= 4 else 1  # masks between two looks at the clock

Words: TypeAlias = NDArray[np.int32]


@cache
def _executor() -> Any:
    return library().LLExecutor()


@dataclass(frozen=True)
class Masks:
    """What may stand at each position of R rows with K guesses each.

    Attributes:
        words: [R, K + 1, W] of 32 tokens each, a bit set for a token that is allowed; nothing is
            for a row in ``trouble``.
        counted: guesses of each row that say something of who made them, from the first on: those
            that are allowed, and the one that is not, which is wrong.
        tested: how many of them may be compared with the target's tokens.
        ends: of rows whose guesses lead where nothing can follow, those guesses and why; else None.
        late: rows for which there was no time: nothing is known of what they may say.
    """

    words: Words
    counted: list[int]
    tested: list[int]
    ends: list[DeadEnd | None]
    late: list[int]


def fill_masks(guides: Seq[Guide], guesses: Seq[Seq[int]], seconds: float = MOST_SECONDS) -> Masks:
    """What may stand at each position of some rows of one tokenizer.

    Args:
        guides: R of them, each behind its row's emitted tokens; they are left there.
        guesses: for each row, at most K; behind the last of a row nothing is forbidden.
        seconds: after which guesses that were not looked at are none of anybody's; infinite where
            nothing may depend on the clock.
    """
    rows, count, size = len(guides), max(map(len, guesses)), -(-guides[0].width // 32)
    words: Any = np.full((rows, count + 1, size), -1, np.int32)
    walks = [_Walk(*row) for row in zip(guides, guesses, words, strict=True)]
    going = _begun(
        sorted(walks, key=lambda walk: -walk.guide.waited),
        FIRST_SECONDS if seconds < math.inf else seconds,
    )
    until = time.perf_counter() + seconds
    for _ in range(count):
        going = _further(going, until)
    for walk in walks:
        walk.back()
    return Masks(
        words,
        [walk.counted for walk in walks],
        [walk.tested for walk in walks],
        [walk.end for walk in walks],
        [row for row, walk in enumerate(walks) if walk.guide.waited],
    )


class _Walk:
    """One row's way along its guesses, and back.

    Args:
        guide: behind what was emitted.
        guesses: of its row, at most K.
        words: [K + 1, W], its masks.
    """

    def __init__(self, guide: Guide, guesses: Seq[int], words: Words) -> None:
        self.guide, self._guesses, self.words = guide, guesses, words
        self.place = 0
        self.counted = self.tested = len(guesses)
        self.end: DeadEnd | None = None

    def advance(self) -> bool:
        """Stand behind the next guess; False where there is none, or it is forbidden or ends the
        text."""
        if self.place == len(self._guesses) or self.guide.trouble:
            return False
        token = self._guesses[self.place]
        # A padded model may guess what is no token.
        if not 0 <= token < self.guide.width or not (
            self.words[self.place, token // 32] >> token % 32 & 1
        ):
            self.counted = self.place + 1
            return False
        if self.guide.ends(token):
            return False
        self.guide.matcher.consume_token(token)
        self.place += 1
        return True

    def stop(self) -> None:
        """Go no further, there is no time.

        The next guess is not compared, whatever it is: what is tested must not depend on it.
        """
        self.counted = self.tested = self.place

    def back(self) -> None:
        """Stand behind what was emitted again."""
        guide = self.guide
        if guide.trouble and self.place:
            # The last guess has led there, and is judged as any other: dropped for what it is, it
            # would be drawn anew. Where it stands it is the row's last token, and what the target
            # says behind it nobody's.
            self.end = DeadEnd(tuple(self._guesses[: self.place]), guide.trouble_after(self.place))
            guide.again()
            self.counted = self.tested = self.place
            self.words[self.place] = -1
        elif self.place:
            guide.matcher.rollback(self.place)
        if guide.trouble:
            self.words[:] = 0


def _begun(walks: Seq[_Walk], seconds: float) -> list[_Walk]:
    """The masks behind what was emitted, the first ones in any case; who has one."""
    until = time.perf_counter() + seconds
    for first in range(0, len(walks), _AT_ONCE):
        if first and time.perf_counter() > until:
            for walk in walks[first:]:
                walk.stop()
                walk.guide.waited += 1
            return list(walks[:first])
        some = walks[first : first + _AT_ONCE]
        _fill(some)
        for walk in some:
            walk.guide.waited = 0
    return list(walks)


def _further(walks: Seq[_Walk], until: float) -> list[_Walk]:
    """One guess further, while there is time; who has come there."""
    there = []
    for first in range(0, len(walks), _AT_ONCE):
        some = walks[first : first + _AT_ONCE]
        if time.perf_counter() > until:
            for walk in some:
                walk.stop()
            continue
        some = [walk for walk in some if walk.advance()]
        _fill(some)
        there += some
    return there


def _fill(walks: Seq[_Walk]) -> None:
    """The masks where these rows stand."""
    if len(walks) == 1:
        _fill_one(walks[0])
    elif walks:
        _fill_together(walks)


def _fill_one(walk: _Walk) -> None:
    from llguidance.numpy import fill_next_token_bitmask

    fill_next_token_bitmask(walk.guide.matcher, walk.words[walk.place : walk.place + 1])


def _fill_together(walks: Seq[_Walk]) -> None:
    """By several threads."""
    from llguidance.numpy import fill_next_token_bitmask_par

    words = np.empty((len(walks), walks[0].words.shape[1]), np.int32)
    places = [(walk.guide.matcher, row) for row, walk in enumerate(walks)]
    fill_next_token_bitmask_par(_executor(), places, words)
    for walk, own in zip(walks, words, strict=True):
        walk.words[walk.place] = own
