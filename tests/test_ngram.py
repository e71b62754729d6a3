"""Lookups in a row's own text and in others': exact at any batch, and quiet where they are wrong.

A vocabulary of a few tokens makes random models repeat themselves, so that lookups find much, and
are right and wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.decoding import stepper
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.decoding.drafters.guesses import Guess
from mlx_spec.decoding.drafters.lookahead import LookaheadDrafter
from mlx_spec.decoding.drafters.ngram import NgramDrafter
from mlx_spec.decoding.drafters.none import NoDraft
from mlx_spec.decoding.drafters.suffixes.row import RowIndex
from mlx_spec.decoding.drafters.suffixes.shared import SharedIndex
from mlx_spec.sequence import Sequence
from tests.architecture_runs import not_compiled
from tests.architectures import build
from tests.models import make_model
from tests.preemption import preempt
from tests.scenario import plain_alone

Patch = pytest.MonkeyPatch
WORDS = 8  # of the vocabulary
ROWS = 3


@cache
def model(name: str) -> Any:
    return make_model(name, vocab_size=WORDS) if name == "llama" else build(name, vocab_size=WORDS)


def requests(tokens: int = 36) -> list[Sequence]:
    """More than rows, greedy ones and sampled ones, of different lengths."""
    rng = random.Random(3)
    return [
        Sequence(
            [rng.randrange(WORDS) for _ in range(length)],
            SamplingParams(
                max_tokens=tokens - 3 * index, seed=index, temperature=0.4 * (index % 2)
            ),
            index=index,
        )
        for index, length in enumerate((4, 40, 9, 1, 18))
    ]


@cache
def expected(name: str) -> list[list[int]]:
    return [plain_alone(model(name), tuple(row.prompt), row.sampling) for row in requests()]


def decoder_of(name: str, drafter: BaseDrafter, rows: int = ROWS) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        model(name),
        drafter=drafter,
        policy=FixedDraftLength(4),
        batching=BatchingConfig(batch_size=rows, prefill_step_size=48, prefill_interleave=16),
    )


def run(decoder: SpeculativeDecoder, rows: list[Sequence]) -> None:
    todo = list(rows)
    while todo or decoder.busy:
        while todo and decoder.free_rows:
            decoder.add([todo.pop(0)])
        decoder.step()


@pytest.mark.parametrize("shared", [0, 1 << 20], ids=["own", "shared"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_next"])
def test_rows_say_what_the_target_says(name: str, shared: int) -> None:
    """A full cache, a ring and a state; late ones, and one that is preempted and comes back."""
    made = requests()
    with not_compiled():
        decoder = decoder_of(name, NgramDrafter(shared))
        preempt(decoder, made)
        assert [row.tokens for row in made] == expected(name)
    assert 0 < sum(row.accepted for row in made) < sum(row.drafted for row in made)
    assert decoder.meter.ahead > 0  # before anything was confirmed


class Watched(NgramDrafter):
    """Compares each row's guesses with those of an index that is made anew of what it has said."""

    wrong, looked = 0, 0

    def propose(self, context: DraftContext, count: int) -> Draft:
        draft = super().propose(context, count)
        if context.known is not None:
            for row in context.sequences:
                anew = RowIndex(self._lookups, None)
                anew.hear(row, row.length)
                index = self._rows[row]
                # Asked for as the drafter asks, of whichever index it takes for this row's.
                index.confirmation.verified, was = True, index.confirmation.verified
                guesses = self._guess(row, 3)
                index.confirmation.verified = was
                self.looked += 1
                fresh = anew.guesses(3)
                self.wrong += [token for token, _ in guesses] != [token for token, _ in fresh]
        return draft


def watched(floor: Patch) -> Watched:
    """Rows of different prompts that come, go and are preempted."""
    floor.setattr(NgramDrafter, "FLOOR", 0.0)  # how far a guess goes is learned, what it is is not
    floor.setattr(NgramDrafter, "needs_host", property(lambda self: self._hear() or True))
    drafter = Watched()
    preempt(decoder_of("llama", drafter), requests(20))
    return drafter


def test_what_is_guessed_depends_on_the_row_s_text_alone(monkeypatch: Patch) -> None:
    drafter = watched(monkeypatch)
    assert drafter.looked > 30
    assert drafter.wrong == 0


def sees_rejected_tokens(patch: Patch) -> None:
    """What was guessed is indexed as if it had been said."""
    right = RowIndex.guesses

    def planted(self: RowIndex, most: int) -> list[Guess]:
        made = right(self, most)
        for token, _ in made:
            self._end = self._own.append(self._end, token)
        return made

    patch.setattr(RowIndex, "guesses", planted)


def first_row_s_for_all(patch: Patch) -> None:
    """The state of slot 0 is everybody's."""

    def planted(self: NgramDrafter, sequence: Sequence, count: int) -> list[Guess]:
        return next(iter(self._rows.values())).guesses(count)

    patch.setattr(NgramDrafter, "_guess", planted)


def stays_where_the_row_was(patch: Patch) -> None:
    """Rows move to other slots and their indices do not."""
    right = NgramDrafter.keep

    def planted(self: NgramDrafter, order: Any) -> None:
        indices = list(self._rows.values())
        right(self, order)
        self._rows = dict(zip(self._rows, indices, strict=False))

    patch.setattr(NgramDrafter, "keep", planted)


def begins_anew_in_the_middle(patch: Patch) -> None:
    """Who comes back is indexed from where it stands."""

    def planted(self: NgramDrafter, rows: Any, longest: int) -> None:
        for row in rows:
            self._rows[row] = self._new()
            self._rows[row]._read = row.length - 1

    patch.setattr(NgramDrafter, "join", planted)


@pytest.mark.parametrize(
    "plant",
    [
        sees_rejected_tokens,
        first_row_s_for_all,
        stays_where_the_row_was,
        begins_anew_in_the_middle,
    ],
)
def test_planted_bugs_show(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert watched(monkeypatch).wrong > 0


def says_twice() -> list[int]:
    """Draft tokens accepted of a request, of the same one again, and in another decoder."""
    rows = [Sequence([1, 2, 3, 4], SamplingParams(max_tokens=20), index=0) for _ in range(3)]
    drafter = NgramDrafter(1 << 20)
    decoder = decoder_of("llama", drafter)
    run(decoder, rows[:1])
    run(decoder, rows[1:2])
    run(decoder_of("llama", NgramDrafter(1 << 20)), rows[2:])
    assert rows[0].tokens == rows[1].tokens == rows[2].tokens
    return [row.accepted for row in rows]


def test_rows_learn_from_others_of_their_decoder_only(monkeypatch: Patch) -> None:
    first, again, elsewhere = says_twice()
    assert again > first == elsewhere
    one = SharedIndex(1 << 20)
    monkeypatch.setattr("mlx_spec.decoding.drafters.ngram.SharedIndex", lambda nbytes: one)
    first, _, elsewhere = says_twice()
    assert elsewhere > first  # a leak shows


Says = Callable[[int | None, bool], int]
"""What a text says next, of what is looked up for it and whether that is verified."""


class Scripted(NgramDrafter):
    """Plays a text to one row without a model."""

    def play(self, prompt: list[int], says: Says, count: int) -> list[int]:
        """How many guesses would have been verified, at each token of the text."""
        row = Sequence(prompt, SamplingParams(max_tokens=count + 1))
        self.join([row], 0)
        verified = []
        for _ in range(count):
            active = self.needs_host
            verified.append(len(self._guess(row, 4)) if active else 0)
            lookup = self._rows[row]._lookup
            found = lookup.found if lookup else None
            row.tokens.append(says(found.token if found else None, active))
        self.keep([])
        return verified


def text(said: list[int]) -> Says:
    left = iter(said)
    return lambda guess, active: next(left)


def test_text_without_repeats_is_never_verified() -> None:
    rng = random.Random(1)
    said = [rng.randrange(5000) for _ in range(400)]
    assert sum(Scripted().play(said[:50], text(said), 400)) > 0  # a copy of the prompt is
    rng.shuffle(said)
    assert sum(Scripted().play(said[:50], text(said[50:]), 300)) == 0


def test_lookups_that_are_always_wrong_are_never_verified() -> None:
    """What stands twice is followed by what never followed it."""
    rng = random.Random(2)
    followed: dict[int, int] = {}

    def says(guess: int | None, active: bool) -> int:
        if guess is None:
            return rng.randrange(8)
        followed[guess] = followed.get(guess, guess) + 1
        return (guess + 1) % 8

    drafter = Scripted()
    assert sum(drafter.play([0, 1, 2, 3], says, 500)) == 0
    assert len(followed) == 8  # much was found


def test_repeats_that_deceive_settle_at_plain() -> None:
    """Right as long as nobody verifies, wrong as soon as somebody does."""
    rng = random.Random(2)

    def says(guess: int | None, active: bool) -> int:
        return rng.randrange(20) if guess is None else guess + active

    verified = Scripted().play(list(range(20)), says, 1500)
    tried = [count > 0 for count in verified]
    assert sum(tried[:60]) > 2
    assert sum(tried[500:]) < 0.05 * 1000


def test_nothing_found_costs_nothing(monkeypatch: Patch) -> None:
    """Steps are plain and built ahead, as many as without a drafter."""
    monkeypatch.setattr(stepper, "rows_cost", lambda: False)  # else times decide what is dropped
    steps = []
    drafters = {NoDraft(): 0, NgramDrafter(1 << 20): 4, LookaheadDrafter(): 4}
    for drafter, length in drafters.items():
        decoder = SpeculativeDecoder(
            make_model("llama"),
            drafter=drafter,
            policy=FixedDraftLength(length),
            batching=BatchingConfig(batch_size=ROWS),
        )
        rows = [Sequence([7 * n + 1, 3], SamplingParams(max_tokens=10)) for n in range(5)]
        run(decoder, rows)
        assert sum(row.drafted for row in rows) == 0
        steps.append((decoder.meter.steps, decoder.meter.ahead, decoder.meter.draft_lengths))
    assert steps[1:] == steps[:1] * 2


def test_where_nobody_wants_drafts_steps_are_built_ahead() -> None:
    """Until somebody asks, or rows come for which it may be worth it."""
    drafter = NgramDrafter()
    row = Sequence([1, 2, 3, 4, 5, 1, 2], SamplingParams(max_tokens=20))
    drafter.join([row], 0)
    for token in (3, 4):
        assert not drafter.needs_host
        row.tokens.append(token)
    assert drafter.needs_host
    drafter.skip()
    assert not drafter.needs_host
    drafter.join([Sequence([9], SamplingParams(max_tokens=20))], 0)
    assert drafter.needs_host


def test_a_long_prompt_is_indexed_in_pieces(monkeypatch: Patch) -> None:
    monkeypatch.setattr(NgramDrafter, "AT_ONCE", 16)
    drafter = Scripted()
    prompt = list(range(100, 200))
    verified = drafter.play(prompt, text(prompt), 60)
    assert sum(verified[:6]) == 0  # not all was read yet
    assert sum(verified) > 0
