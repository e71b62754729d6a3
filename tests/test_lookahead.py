"""Chains of n-grams from the target's own answers: exact, right at times, and a row's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlx_spec.decoding.drafters.lookahead import Answered, LookaheadDrafter
from mlx_spec.decoding.drafters.suffixes.confirmation import Confirmation
from mlx_spec.decoding.drafters.suffixes.pool import GramPool
from mlx_spec.sequence import Sequence
from tests.architecture_runs import not_compiled
from tests.preemption import preempt
from tests.test_ngram import ROWS, decoder_of, expected, requests, run

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_next"])
def test_rows_say_what_the_target_says(name: str) -> None:
    """A full cache, a ring and a state; late ones, and one that is preempted and comes back."""
    made = requests()
    with not_compiled():
        decoder = decoder_of(name, LookaheadDrafter())
        preempt(decoder, made)
        assert [row.tokens for row in made] == expected(name)
    assert 0 < sum(row.accepted for row in made) < sum(row.drafted for row in made)
    assert decoder.meter.ahead > 0  # before anything was confirmed


@contextmanager
def always_verified(patch: Patch) -> Iterator[None]:
    """Steps in turn, and chains of any chance: what is guessed depends on the row alone."""
    with patch.context() as inside:
        inside.setattr(LookaheadDrafter, "FLOOR", 0.0)
        inside.setattr(LookaheadDrafter, "needs_host", True)
        inside.setattr(Confirmation, "judge", lambda self, right: setattr(self, "verified", True))
        yield


def counts(patch: Patch, rows: int) -> list[tuple[int, int]]:
    """Guesses of each request and how many stood, so many rows at a time."""
    made = requests()
    with always_verified(patch):
        if rows == 1:
            run(decoder_of("llama", LookaheadDrafter(), 1), made)
        else:
            preempt(decoder_of("llama", LookaheadDrafter(), rows), made)
    return [(row.drafted, row.accepted) for row in made]


def test_guesses_do_not_depend_on_neighbours(monkeypatch: Patch) -> None:
    alone = counts(monkeypatch, 1)
    assert 0 < sum(accepted for _, accepted in alone) < sum(drafted for drafted, _ in alone)
    assert counts(monkeypatch, ROWS) == alone


def first_row_s_for_all(patch: Patch) -> None:
    """The state of slot 0 is everybody's."""
    right = LookaheadDrafter.join

    def planted(self: LookaheadDrafter, rows: Any, longest: int) -> None:
        right(self, rows, longest)
        for row in rows:
            self._rows[row] = self._rows[self._present[0]]

    patch.setattr(LookaheadDrafter, "join", planted)


def lost_with_a_preemption(patch: Patch) -> None:
    """Who comes back begins anew."""
    right = LookaheadDrafter.keep

    def planted(self: LookaheadDrafter, order: Any) -> None:
        before = list(self._present)
        right(self, order)
        for row in set(before) - set(self._present):
            self._rows.pop(row)

    patch.setattr(LookaheadDrafter, "keep", planted)


def by_the_end_of_a_neighbour(patch: Patch) -> None:
    """Answers are filed under another row's last tokens."""
    right = LookaheadDrafter.collect

    def planted(self: LookaheadDrafter, row: Sequence, answered: Answered) -> None:
        right(self, self._present[-1] if row in self._present else row, answered)

    patch.setattr(LookaheadDrafter, "collect", planted)


@pytest.mark.parametrize(
    "plant", [first_row_s_for_all, lost_with_a_preemption, by_the_end_of_a_neighbour]
)
def test_planted_bugs_show(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    alone = counts(monkeypatch, 1)
    plant(monkeypatch)
    assert counts(monkeypatch, ROWS) != alone


def test_answers_behind_a_wrong_guess_and_runners_up_are_collected() -> None:
    """The picture in ``lookahead``: a b is known, x y z is guessed, x stands."""
    a, b, x, y, z, c, d, e = range(8)
    row = Sequence([a, b])
    drafter = LookaheadDrafter()
    drafter.join([row], 9)
    row.tokens += [x, c]
    drafter.collect(row, Answered([x, y, z], [x, c, d, e], [y, y, y, a], gained=2))
    pool = drafter._rows[row].pool
    for before, last, token in ((a, b, x), (b, x, c), (x, y, d), (y, z, e)):
        found = pool.next(before, last)
        assert found is not None
        assert (found.token, found.order) == (token, 2)
        assert 0.5 < found.share < 1.0  # the runner-up has the rest
    found = pool.next(e, x)
    assert found is not None
    assert (found.token, found.order) == (c, 1)
    assert pool.next(x, e) is None


def test_a_pool_forgets_its_oldest(monkeypatch: Patch) -> None:
    monkeypatch.setattr(GramPool, "MOST", 10)
    pool = GramPool()
    for token in range(40):
        pool.add(token, token + 1, token + 2, 99)
    assert pool.next(39, 40) is not None
    assert pool.next(0, 1) is None


def test_what_is_answered_now_outweighs_the_past() -> None:
    pool = GramPool()
    for _ in range(3):
        pool.add(1, 2, 3, 4)
    for _ in range(6):
        pool.add(1, 2, 5, 3)
    found = pool.next(1, 2)
    assert found is not None
    assert found.token == 5
