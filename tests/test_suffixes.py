"""The index of texts against a search by hand, its bytes, and what is believed of it."""

from __future__ import annotations

import random

import pytest

from mlx_spec.decoding.drafters.ngram import MATCHES, USUAL
from mlx_spec.decoding.drafters.suffixes.automaton import ROOT, SuffixAutomaton
from mlx_spec.decoding.drafters.suffixes.confirmation import Confirmation, worth_waiting
from mlx_spec.decoding.drafters.suffixes.shared import SharedIndex, SharedReader
from mlx_spec.decoding.drafters.suffixes.trust import Trust


def places(stretch: list[int], texts: list[list[int]]) -> int:
    """How often a stretch stands in some texts."""
    count = len(stretch)
    return sum(
        text[at : at + count] == stretch for text in texts for at in range(len(text) - count + 1)
    )


@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("letters", [2, 5])
def test_the_longest_repeated_end_and_what_followed_it(letters: int, writers: int) -> None:
    rng = random.Random(letters + writers)
    for _ in range(8):
        index = SuffixAutomaton()
        index.COUNTED = 100
        texts: list[list[int]] = [[] for _ in range(writers)]
        ends = [ROOT] * writers
        for _ in range(45):
            row, token = rng.randrange(writers), rng.randrange(letters)
            texts[row].append(token)
            ends[row] = index.append(ends[row], token)
            _, state, length, _ = index.repeated(ends[row])
            text = texts[row]
            known = [n for n in range(1, len(text) + 1) if places(text[-n:], texts) > 1]
            assert length == max(known, default=0)
            if not length:
                continue
            end = text[-length:]
            assert index.times(state) == places(end, texts)
            found = index.next(state)
            follow = [places([*end, token], texts) for token in range(letters)]
            assert (found.times if found else 0) == max(follow)
            assert found is None or follow[found.token] == found.times


def test_a_reader_matches_the_longest_end_of_what_it_reads() -> None:
    """While what it reads still grows, so that states are split under it."""
    rng = random.Random(4)
    index, end, place = SuffixAutomaton(), ROOT, (ROOT, 0)
    text: list[int] = []
    read: list[int] = []
    for _ in range(300):
        text.append(rng.randrange(3))
        end = index.append(end, text[-1])
        read.append(rng.randrange(3))
        place = index.step(*place, read[-1])
        longest = place[1]
        assert longest == 0 or places(read[-longest:], [text]) > 0
        if longest < len(read):
            # Longer ends may have come to be since, by the last token of the text alone.
            assert places(read[-longest - 1 :], [text[:-1]]) == 0 or longest > 3


def test_a_loop_of_one_token_costs_no_more_than_text() -> None:
    index, end = SuffixAutomaton(), ROOT
    for _ in range(2000):
        end = index.append(end, 7)
    assert index.repeated(end).length == 1999
    assert index.nbytes < 2000 * 2 * index.STATE_BYTES


def test_shared_bytes_are_bounded_and_the_oldest_go() -> None:
    shared = SharedIndex(60_000)
    rng = random.Random(5)
    reader = SharedReader(shared)
    for turn in range(5000):
        reader.append(rng.randrange(1000))
        if turn % 500 == 0:
            reader = SharedReader(shared)
    assert shared.turns > 2
    assert shared.nbytes < 60_000 + 500
    first = SharedReader(shared)
    rng = random.Random(5)
    for _ in range(20):
        first.append(rng.randrange(1000))
    assert max(place.length for place in first.matches() if place.length < 20) < 5  # gone


def test_a_row_goes_on_in_the_generation_that_was_young() -> None:
    shared = SharedIndex(4000)
    reader = SharedReader(shared)
    seen = []
    for token in [1, 2, 3, 4, 5] * 30:
        reader.append(token)
        seen.append(max(place.length for place in reader.matches()))
    assert shared.turns > 0
    assert min(seen[10:]) >= 5


def test_trust_follows_what_came_true() -> None:
    trust = Trust(MATCHES, USUAL)
    before = trust.chance(2, 1.0)
    for _ in range(50):
        trust.learn(2, 1.0, True)
    assert before < trust.chance(2, 1.0) <= Trust.MOST
    for _ in range(200):
        trust.learn(2, 1.0, False)
    assert trust.chance(2, 1.0) < before
    assert trust.chance(20, 1.0) > 0.9  # another match length


def test_confirmation_pauses_and_resumes() -> None:
    row = Confirmation()
    row.judge(True)
    assert not row.verified
    row.judge(True)
    assert row.verified  # two in a row
    for _ in range(4):
        row.judge(False)
    assert not row.verified
    for _ in range(3):
        row.judge(True)
    assert not row.verified  # it was in vain: twice as many now
    row.judge(True)
    assert row.verified
    for _ in range(20):
        row.judge(True)
    for _ in range(30):
        row.judge(None)
    assert not row.verified
    row.judge(True)
    row.judge(True)
    assert row.verified  # it had paid: two again


def test_one_row_s_finds_do_not_make_many_wait() -> None:
    rows = [Confirmation() for _ in range(16)]
    assert not worth_waiting(rows)
    for _ in range(2):
        rows[0].judge(True)
    assert rows[0].verified
    assert worth_waiting(rows[:4])
    assert not worth_waiting(rows)
    for row in rows[1:5]:
        row.judge(True)
        row.judge(True)
    assert worth_waiting(rows)
