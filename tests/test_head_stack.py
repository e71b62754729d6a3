"""Heads behind one another: exact as all drafts are, each at its place, and right where it is.

What a stack guesses is compared with what its heads say of the whole text in one call each, and
heads that know the next tokens are always accepted. Each planted bug is red in one of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.head import HeadDrafter
from mlx_spec.decoding.drafters.pairs import Pairs
from mlx_spec.decoding.heard import Fed
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.model.heads.slots import HeadSlots
from mlx_spec.model.heads.stack import HeadStack
from mlx_spec.model.hidden import HiddenLayers, noting
from mlx_spec.sequence import Sequence
from tests.drafter_runs import PROMPTS, alone, random_stack, request
from tests.fakes import CyclingPolicy, RaggedPolicy
from tests.preemption import preempt
from tests.scenario import make_jobs, run_jobs, target, wrong_rows
from tests.test_head_drafter import missed, run
from tests.toys.sums import SumStack

pytestmark = pytest.mark.usefixtures("uncompiled")

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize(("depth", "sampled"), [(2, False), (3, True)])
def test_heads_that_are_right_are_always_accepted(depth: int, sampled: bool) -> None:
    """With joins, leaves and ragged drafts, of fewer and of more tokens than there are heads."""
    made = run(RaggedPolicy(5), sampled=sampled, head=SumStack(depth))
    assert missed(made) == 0
    assert all(row.drafted for row in made)


@pytest.mark.parametrize("in_turn", [False, True])
def test_after_plain_steps_they_still_are(in_turn: bool) -> None:
    made = run(CyclingPolicy([4, 0, 0, 2, 0, 1]), in_turn=in_turn, head=SumStack(3))
    assert missed(made) == 0


def test_a_row_that_comes_back_is_guessed_for() -> None:
    """What was guessed of its last positions stays there for good; here that was right."""
    made = run(RaggedPolicy(4), preempt=6, head=SumStack(3))
    assert missed(made) == 0
    assert all(row.drafted for row in made)


@pytest.mark.parametrize(
    ("family", "sampled"), [("llama", True), ("gpt_oss", False), ("lfm2", True)]
)
def test_any_stack_leaves_texts_as_they_are(family: str, sampled: bool) -> None:
    """Over full attention, windows and states; with what is read of repeated beginnings."""
    decoder = SpeculativeDecoder(
        target(family),
        draft_model=random_stack(3, chained=family == "llama"),
        policy=RaggedPolicy(5),
        batching=BatchingConfig(
            batch_size=4, prefill_step_size=16, block_size=8, prefix_cache_bytes=2**20
        ),
        debug=family == "llama",
    )
    jobs = make_jobs(family, sampled, 7)
    made = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, made) == []
    assert sum(row.drafted for row in made) > sum(row.accepted for row in made) > 0


def test_nor_does_a_row_that_makes_way_change() -> None:
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=random_stack(3),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16, prefill_interleave=8),
    )
    made = [request(index, False) for index in range(len(PROMPTS))]
    preempt(decoder, made)
    assert [tuple(row.tokens) for row in made] == [alone("llama", n, False) for n in range(5)]
    assert min(row.drafted for row in made) > 0


def of_the_whole_text(stack: HeadStack, known: list[int], count: int) -> list[int]:
    """What its heads guess, each over the whole text in one call: as they are trained."""
    model, last = target("llama"), len(stack.heads) - 1
    parts, tokens = TargetParts(model), known[1:]
    with noting(HiddenLayers()) as notes:
        model(mx.array([known]))
    given = hidden = notes.take()[:, : len(tokens)]
    for step in range(count):
        head = stack.heads[min(step, last)]
        read = mx.array([tokens[min(step, last) :]])
        states = head(parts.embed(read), given, mask_of(read.shape[1], head.window))
        tokens = [*tokens, mx.argmax(parts.output()(states)[0, -1]).item()]
        if step < last:
            given = states if stack.chained else hidden
        else:
            given = mx.concatenate([given, states[:, -1:]], axis=1)
    return tokens[len(known) - 1 :]


def mask_of(width: int, window: int | None) -> Any:
    places = mx.arange(width)
    behind = places[:, None] - places
    return (behind >= 0) & (behind < (window or width))


def differing(stack: HeadStack, monkeypatch: Patch) -> tuple[int, int]:
    """Guesses of rows in ragged steps that are not those of the whole text, and how many were
    looked at."""
    drafts: list[tuple[list[Sequence], mx.array, mx.array]] = []
    right = HeadDrafter.propose

    def propose(self: HeadDrafter, context: Any, count: int) -> Any:
        draft = right(self, context, count)
        drafts.append((list(context.sequences), context.lengths, draft.tokens))
        return draft

    monkeypatch.setattr(HeadDrafter, "propose", propose)
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=stack,
        policy=RaggedPolicy(4),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16, prefill_interleave=8),
    )
    jobs = make_jobs("llama", False, 5)
    made = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, made) == []
    assert 0 < sum(row.accepted for row in made) < sum(row.drafted for row in made)
    wrong = looked = 0
    for rows, lengths, tokens in drafts:
        for row, length, guesses in zip(rows, lengths.tolist(), tokens.tolist(), strict=True):
            if 2 <= length <= row.length:
                said = of_the_whole_text(stack, row.known(0, length), len(guesses))
                wrong += sum(a != b for a, b in zip(said, guesses, strict=True))
                looked += len(guesses)
    return wrong, looked


@pytest.mark.parametrize(
    ("depth", "chained", "window"), [(2, True, None), (3, True, None), (3, False, 5)]
)
def test_each_head_guesses_what_it_says_of_the_whole_text(
    depth: int, chained: bool, window: int | None, monkeypatch: Patch
) -> None:
    """Positions, hidden states, and keys and values of prompts, steps and wrong guesses are in
    that; drafts are longer and shorter than the stack."""
    stack = random_stack(depth, chained=chained, window=window)
    wrong, looked = differing(stack, monkeypatch)
    assert wrong == 0
    assert looked > 100


def first_for_all(patch: Patch) -> None:
    """The first head guesses again and again, as where there is one."""
    right = HeadSlots.__init__

    def init(self: HeadSlots, *args: Any) -> None:
        right(self, *args)
        first = self._stages[0]
        alike = {"head": first.head, "choices": first.choices}
        self._stages = [replace(stage, **alike) for stage in self._stages]

    patch.setattr(HeadSlots, "__init__", init)


def states_of_another(patch: Patch) -> None:
    """Heads behind the first one read the target's states, not those of the head before them."""
    right = HeadSlots.__init__

    def init(self: HeadSlots, *args: Any) -> None:
        right(self, *args)
        self.chained = False

    patch.setattr(HeadSlots, "__init__", init)


def guesses_stay(patch: Patch) -> None:
    """What later heads have of guesses is not written again when the tokens are known."""
    patch.setattr(Pairs, "then", lambda self, newer: newer)


def prompts_one_token_early(patch: Patch) -> None:
    """All heads read of a prompt what the first one does."""
    patch.setattr(Fed, "further", lambda self, by: self.following)


def newest_alone(patch: Patch) -> None:
    """For a proposal every head reads one position, so that the third one lacks one."""
    right = Pairs.tail
    patch.setattr(Pairs, "tail", lambda self, most: right(self, 1))


MUTANTS: list[Callable[[Patch], None]] = [
    first_for_all,
    states_of_another,
    guesses_stay,
    prompts_one_token_early,
    newest_alone,
]


@pytest.mark.parametrize("plant", MUTANTS)
def test_a_planted_bug_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """Texts stay what they are; guesses do not."""
    plant(monkeypatch)
    assert differing(random_stack(3), monkeypatch)[0] > 0
