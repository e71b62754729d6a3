"""Masks of many rows and all their guesses, in one call that uses several threads.

Row of K = 3 guesses, of which the second is forbidden; 1 is a token that may stand there::

    position   0          1            2                 3
    behind     emitted    g0           g0 g1             g0 g1 g2
    mask       1001..     0110..       all: never read   all: never read
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Seq
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlx_spec.structured.guide import Guide
from mlx_spec.structured.vocabulary import library

# With a thread or two of its own llguidance would gain nothing, and wait for them.
_PARALLEL = (os.cpu_count() or 1) >= 4

Words: TypeAlias = NDArray[np.int32]


@cache
def _executor() -> Any:
    return library().LLExecutor()


def fill_masks(guides: Seq[Guide], guesses: Seq[Seq[int]]) -> tuple[Words, list[int]]:
    """What may stand at each position of some rows of one tokenizer.

    Args:
        guides: R of them, each behind its row's emitted tokens; they are left there.
        guesses: K tokens for each row.

    Returns:
        [R, K + 1, W] words of 32 tokens each, a bit set for a token that is allowed (nothing is for
        a row in ``trouble``); and how many guesses of each row count, from the first on: those that
        are allowed, and the one that is not, which is wrong.
    """
    rows, count, size = len(guides), len(guesses[0]), -(-guides[0].width // 32)
    words: Any = np.full((rows * (count + 1), size), -1, np.int32)
    _fill(words, guides, guesses)
    words = words.reshape(rows, count + 1, size)
    counts = [_counting(own, guess) for own, guess in zip(words, guesses, strict=True)]
    for row, guide in enumerate(guides):
        if guide.trouble and count:
            # Perhaps a guess has led there: what may follow must not depend on one.
            guide.again()
            counts[row] = 0
            words[row] = -1
            _fill(words[row, :1], [guide], [()])
        if guide.trouble:
            words[row] = 0
    return words, counts


def _fill(words: Words, guides: Seq[Guide], guesses: Seq[Seq[int]]) -> None:
    from llguidance import numpy as masks

    if len(guides) > 1 and not _PARALLEL:
        size = len(words) // len(guides)
        for row, guide in enumerate(guides):
            _fill(words[row * size : (row + 1) * size], [guide], guesses[row : row + 1])
        return
    executor, width = _executor(), len(guesses[0]) + 1
    places = [(guide.matcher, row * width) for row, guide in enumerate(guides)]
    if width == 1:
        masks.fill_next_token_bitmask_par(executor, places, words)
        return
    known = guides[0].width  # a padded model may guess what is no token
    with_guesses = [
        (*place, [token if 0 <= token < known else 0 for token in guess])
        for place, guess in zip(places, guesses, strict=True)
    ]
    masks.fill_next_token_bitmask_par_with_draft_tokens(executor, with_guesses, words)


def _counting(words: Words, guesses: Seq[int]) -> int:
    """The leading guesses [K] that the masks [K + 1, W] allow, and the first that they do not."""
    for place, token in enumerate(guesses):
        if not (0 <= token < 32 * words.shape[1] and words[place, token // 32] >> token % 32 & 1):
            return place + 1
    return len(guesses)
