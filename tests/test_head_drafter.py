"""Drafts from hidden states: exact as all drafts are, and right wherever the head is right.

Exactness cannot see a hidden state of the wrong position; that a head which knows everything is
always accepted can. Each planted bug makes it wrong somewhere.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.decoding.drafters.head import HeadDrafter
from mlx_spec.decoding.drafters.registry import MAKERS
from mlx_spec.errors import InvalidRequest, UnsupportedModel
from mlx_spec.model.heads.head import DraftHead, HeadConfig
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.model.hidden import HiddenLayers, noting
from mlx_spec.sequence import Sequence
from tests.fakes import CyclingPolicy, RaggedPolicy
from tests.models import VOCABULARY
from tests.scenario import make_jobs, plain_alone, run_jobs, target, wrong_rows
from tests.toys.sums import TOKENS, SumHead, SumTarget

Patch = pytest.MonkeyPatch


def requests(sampled: bool) -> list[Sequence]:
    """Of different lengths, so that they join and leave all the time."""
    rng = random.Random(5)
    made = []
    for index in range(9):
        prompt = [rng.randrange(TOKENS) for _ in range(1 if index == 4 else rng.randint(2, 20))]
        temperature = 0.7 if sampled and index % 2 else 0.0
        options = SamplingParams(max_tokens=rng.randint(6, 24), temperature=temperature, seed=index)
        made.append(Sequence(prompt, options, index=index))
    return made


def run(
    policy: Any,
    *,
    sampled: bool = False,
    preempt: int | None = None,
    in_turn: bool = False,
    head: Any = None,
) -> list[Sequence]:
    """Nine requests over four rows, of which one makes way for a while; their texts are checked."""
    decoder = SpeculativeDecoder(
        SumTarget(),
        draft_model=SumHead() if head is None else head,
        policy=policy,
        batching=BatchingConfig(batch_size=4, prefill_step_size=16),
    )
    decoder.drafter.needs_host = in_turn  # type: ignore[misc]
    made = requests(sampled)
    waiting, kept, steps = list(made), [], 0
    while waiting or kept or decoder.busy:
        if steps == preempt:
            rows = [row for row in decoder.running if not row.ended]
            longest = max(rows, key=lambda row: row.max_new_tokens - len(row.tokens))
            kept = [(longest, steps + 3)]
            decoder.suspend(longest, save=True)
        back = [row for row, when in kept if steps >= when and decoder.free_rows]
        kept = [pair for pair in kept if pair[0] not in back]
        joining = waiting[: 1 + steps % 2 if decoder.free_rows > 1 else decoder.free_rows]
        waiting = waiting[len(joining) :] if not back else waiting
        decoder.add(back or joining)
        decoder.step()
        steps += 1
        assert steps < 500
    for row in made:
        expected = plain_alone(SumTarget(), tuple(row.prompt), row.sampling)
        assert row.tokens == expected, row.index
    assert sum(row.drafted for row in made) > 50
    return made


def missed(made: list[Sequence]) -> int:
    """Guesses that were wrong."""
    return sum(row.drafted - row.accepted for row in made)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("in_turn", [False, True])
def test_a_head_that_is_right_is_always_accepted(sampled: bool, in_turn: bool) -> None:
    """With joins, leaves, ragged drafts, plain steps between, and a row that makes way."""
    made = run(RaggedPolicy(4), sampled=sampled, preempt=6, in_turn=in_turn)
    assert missed(made) == 0
    assert all(row.drafted for row in made)


def test_after_plain_steps_it_still_is() -> None:
    """What rows gained without drafts has been read."""
    assert missed(run(CyclingPolicy([4, 0, 0, 0, 2, 0]), preempt=7)) == 0


def chat_goes_on() -> tuple[list[Sequence], int]:
    """A text, and later ones that begin with all of it, or with its prompt; tokens taken over."""
    decoder = SpeculativeDecoder(
        SumTarget(),
        draft_model=SumHead(),
        policy=CyclingPolicy([3]),
        batching=BatchingConfig(batch_size=2, block_size=4, prefix_cache_bytes=2**20),
    )
    first = Sequence([5, 9, 2, 33, 7], SamplingParams(max_tokens=20))
    made = [first]
    decoder.add(made)
    while decoder.busy:
        decoder.step()
    for more in ([11], [2, 8]):
        made.append(Sequence(first.prompt + first.tokens + more, SamplingParams(max_tokens=12)))
    # All of its prompt comes from there but the pending token.
    made.append(Sequence(first.prompt, SamplingParams(max_tokens=12)))
    for row in made[1:]:
        decoder.add([row])
        while decoder.busy:
            decoder.step()
    assert made[3].tokens == first.tokens[:12]
    return made, sum(row.reused for row in made)


def test_what_a_text_left_is_right_for_the_next_one() -> None:
    """Also what it gained in its last step, which no proposal has read."""
    made, reused = chat_goes_on()
    assert missed(made) == 0
    assert reused == 24 + 24 + 4
    assert all(row.drafted for row in made)


class EveryOtherDrafter(BaseDrafter):
    """Guesses for every other row, on the host: its last token and the one behind that."""

    needs_host = True

    def propose(self, context: DraftContext, count: int) -> Draft:
        lengths = [count * (row.index % 2) for row in context.sequences]
        last = [row.known(row.length - 1, row.length)[0] for row in context.sequences]
        guesses = [[token + place for place in range(count)] for token in last]
        return Draft(mx.array(guesses, mx.int32) % TOKENS, lengths=lengths)


def test_beside_another_drafter_it_still_is(monkeypatch: Patch) -> None:
    """In a chain: what rows gained by another's guesses, most of them wrong, is read all the same;
    and in the other rows the head guesses."""
    monkeypatch.setitem(MAKERS, "ngram", lambda parts: EveryOtherDrafter())  # type: ignore[arg-type]
    decoder = SpeculativeDecoder(
        SumTarget(),
        draft_model=SumHead(),
        speculation=SpeculationConfig(draft="ngram+head", adaptive=False, num_draft_tokens=3),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16),
    )
    made = requests(sampled=False)
    waiting = list(made)
    drafted: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    while waiting or decoder.busy:
        joining = waiting[: decoder.free_rows]
        waiting = waiting[len(joining) :]
        decoder.add(joining)
        for output in decoder.step():
            drafted[output.source] += output.drafted
            accepted[output.source] += output.accepted
    for row in made:
        assert row.tokens == plain_alone(SumTarget(), tuple(row.prompt), row.sampling)
    assert drafted["ngram"] > accepted["ngram"]
    assert drafted["head"] == accepted["head"] > 20


def random_head(draft_vocabulary: int = 0, **changes: Any) -> DraftHead:
    mx.random.seed(5)
    return DraftHead(HeadConfig(32, 48, 4, 2, 8, VOCABULARY, draft_vocabulary, **changes))


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("tokens", [0, 40])
def test_any_head_leaves_texts_as_they_are(tokens: int, sampled: bool) -> None:
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=random_head(tokens, input_norms=bool(tokens)),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(
            batch_size=4, prefill_step_size=16, block_size=8, prefix_cache_bytes=2**20
        ),
        debug=True,
    )
    jobs = make_jobs("llama", sampled, 9)
    made = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, made) == []
    assert sum(row.drafted for row in made) > sum(row.accepted for row in made) > 0


def test_what_it_drafts_is_what_the_head_says_of_the_whole_text(monkeypatch: Patch) -> None:
    """Its own forward over a text in one call, without slots: the way in which heads are trained.

    Positions, rotations, and keys and values of prompts, steps and guesses are in that.
    """
    drafts: list[tuple[list[Sequence], mx.array, mx.array]] = []
    right = HeadDrafter.propose

    def propose(self: HeadDrafter, context: Any, count: int) -> Any:
        draft = right(self, context, count)
        drafts.append((list(context.sequences), context.lengths, draft.tokens))
        return draft

    monkeypatch.setattr(HeadDrafter, "propose", propose)
    model, head = target("llama"), random_head()
    decoder = SpeculativeDecoder(
        model,
        draft_model=head,
        policy=RaggedPolicy(3),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16),
    )
    run_jobs(decoder, make_jobs("llama", False, 7))
    parts, looked = TargetParts(model), 0
    for rows, lengths, tokens in drafts:
        for row, length, guess in zip(rows, lengths.tolist(), tokens[:, 0].tolist(), strict=True):
            text = mx.array([row.known(0, row.length)])
            if not 2 <= length <= row.length:
                continue
            with noting(HiddenLayers()) as notes:
                model(text)
            states = head(parts.embed(text[:, 1:length]), notes.take()[:, : length - 1], "causal")
            looked += 1
            assert guess == mx.argmax(parts.output()(states)[0, -1]).item()
    assert looked > 20


def test_a_head_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(UnsupportedModel, match="hidden size 16 and 64 tokens; this one has 32"):
        SpeculativeDecoder(
            target("llama"), draft_model=DraftHead(HeadConfig(16, 48, 4, 2, 4, VOCABULARY))
        )
    with pytest.raises(InvalidRequest, match=r"draft='head' needs a draft head .* none was given"):
        SpeculativeDecoder(target("llama"), speculation=SpeculationConfig(draft="head"))


def test_its_bytes_are_its_row_s() -> None:
    plain = SpeculativeDecoder(target("llama")).cost
    decoder = SpeculativeDecoder(target("llama"), draft_model=random_head())
    assert decoder.cost.per_token - plain.per_token == 2 * 2 * 8 * 4
