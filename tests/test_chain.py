"""Several drafters in one batch: each row takes one's guess, and the others lose nothing by it.

The draft model is the target itself, so that it is right all the time whatever the other drafter
guesses meanwhile: a token that it has not read, or read in a wrong place, shows as a guess of its
that is refused.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.offers import FixedSources
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext, Drafter
from mlx_spec.decoding.drafters.chain import ChainDrafter
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.drafter_runs import guessed
from tests.fakes import RaggedPolicy
from tests.preemption import preempt
from tests.test_draft_kinds import expected, model, prompt

ROWS = 3
KINDS = ("llama", "gemma3_text", "lfm2", "mamba")


class FindingDrafter(BaseDrafter):
    """Finds what the target will say for some rows, for a while, and spoils every fifth position.

    Args:
        texts: prompt and answer of each request, by ``Sequence.index``.
        quiet: whether it has times at which nobody is looked up.
    """

    name = "ngram"

    def __init__(self, texts: Seq[Seq[int]], quiet: bool = True) -> None:
        self._texts, self._quiet = texts, quiet
        self.rows: list[Sequence] = []
        self.asked = 0

    @property
    def needs_host(self) -> bool:  # type: ignore[override]
        return not self._quiet or sum(row.length for row in self.rows) % 16 < 9

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        self.rows += sequences

    def keep(self, order: Seq[int]) -> None:
        self.rows = [self.rows[row] for row in order]

    def found(self, row: Sequence, count: int) -> list[int]:
        """Up to ten tokens, sometimes none."""
        at, most = row.length, (0, 3, 10, 1)[(row.length // 5 + row.index) % 4]
        guess = list(self._texts[row.index][at : at + min(most, count)])
        return [(t + 1) % 64 if (at + i) % 5 == 0 else t for i, t in enumerate(guess)]

    def propose(self, context: DraftContext, count: int) -> Draft:
        assert list(context.sequences) == self.rows
        self.asked += 1
        guesses = [self.found(row, count) if context.known else [] for row in context.sequences]
        lengths = [len(guess) for guess in guesses]
        width = max(lengths)
        tokens = mx.array([guess + [0] * (width - len(guess)) for guess in guesses], mx.int32)
        return Draft(tokens.reshape(len(guesses), width), lengths=lengths)


def run(kind: str, chain: Drafter, policy: Any = None) -> tuple[list[Sequence], SpeculativeDecoder]:
    """Five requests in three slots; one leaves half way and comes back."""
    decoder = SpeculativeDecoder(
        model(kind),
        drafter=chain,
        policy=policy,
        speculation=SpeculationConfig(num_draft_tokens=9, adaptive=False),
        batching=BatchingConfig(batch_size=ROWS, prefill_step_size=16, prefill_interleave=8),
    )
    made = [
        Sequence(list(prompt(i)), SamplingParams(max_tokens=24 + 2 * i), index=i) for i in range(5)
    ]
    preempt(decoder, made, at=5)
    return made, decoder


def texts(kind: str) -> list[list[int]]:
    return [[*prompt(i), *expected(kind, i)] for i in range(5)]


def chained(kind: str, quiet: bool = True) -> ChainDrafter:
    drafter = ModelDrafter(ModelRunner(model(kind), ROWS))
    drafter.name = "model"
    chain = ChainDrafter([FindingDrafter(texts(kind), quiet)], [drafter])
    chain.choice = FixedSources(2, ["model"])  # what is found goes further
    return chain


class NowAndThen(FindingDrafter):
    """Finds nine right tokens for about a third of the rows, always others."""

    def found(self, row: Sequence, count: int) -> list[int]:
        at = row.length
        known = (at * 7 + row.index * 3) % 3 == 0
        return list(self._texts[row.index][at : at + min(9, count)]) if known else []


def counts(made: list[Sequence]) -> dict[str, tuple[int, int]]:
    """Drafted and accepted of each drafter."""
    drafted, accepted = guessed(made)
    return {source: (drafted[source], accepted[source]) for source in drafted}


def wrong(made: list[Sequence], kind: str) -> list[int]:
    return [row.index for row in made if tuple(row.tokens) != expected(kind, row.index)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_draft_model_goes_on_whatever_others_guess(kind: str, ragged: bool) -> None:
    policy = RaggedPolicy(6) if ragged else FixedDraftLength(9)
    made, decoder = run(kind, chained(kind), policy)
    assert wrong(made, kind) == []
    found = counts(made)
    assert set(found) == {"ngram", "model"}
    assert found["model"][0] == found["model"][1] > 10
    assert found["ngram"][0] > found["ngram"][1] > 5
    assert 0 < decoder.meter.ahead < decoder.meter.steps


def test_no_draft_model_runs_where_every_row_has_a_guess() -> None:
    class Everything(FindingDrafter):
        def found(self, row: Sequence, count: int) -> list[int]:
            at = row.length
            return list(self._texts[row.index][at : at + 2]) or [0]

    class Never(BaseDrafter):
        name = "model"
        skipped = 0

        def skip(self, most: int = 1) -> None:
            self.skipped += most > 1

    never = Never()
    made, decoder = run("llama", ChainDrafter([Everything(texts("llama"), quiet=False)], [never]))
    assert wrong(made, "llama") == []
    assert never.skipped == decoder.meter.steps - decoder.meter.draft_lengths[0] > 0


def test_nobody_is_asked_for_more_than_it_can() -> None:
    """Here three tokens, where others of the chain go as far as nine."""
    asked: list[int] = []

    class Short(ModelDrafter):
        max_draft_tokens = 3

        def propose(self, context: DraftContext, count: int) -> Draft:
            asked.append(count)
            return super().propose(context, count)

    class ShortFinding(FindingDrafter):
        max_draft_tokens = 4

        def propose(self, context: DraftContext, count: int) -> Draft:
            assert count <= 4
            return super().propose(context, count)

    for finding in (FindingDrafter, ShortFinding):
        drafter = Short(ModelRunner(model("llama"), ROWS))
        drafter.name = "model"
        chain = ChainDrafter([finding(texts("llama"))], [drafter])
        chain.choice = FixedSources(9, ["model"])
        made, _ = run("llama", chain, chain.choice)
        assert wrong(made, "llama") == []
        assert asked
        assert max(asked) == 3
        found = counts(made)
        assert found["model"][1] == found["model"][0] > 10
        assert found["ngram"][1] > 10


def test_a_chain_of_those_that_look_up_alone() -> None:
    made, decoder = run("llama", ChainDrafter([FindingDrafter(texts("llama"))]))
    assert wrong(made, "llama") == []
    assert counts(made)["ngram"][1] > 10
    assert 0 < decoder.meter.ahead < decoder.meter.steps


def test_two_that_compute_take_turns_with_nobody_in_flight() -> None:
    """The second one begins in the middle: what it lacks is counted where the host knows it."""

    class Turning(FixedSources):
        steps = 0

        @property
        def turning(self) -> bool:  # type: ignore[override]
            return self.costly != ("other" if self.steps // 4 % 2 else "model")

        def choose(self, rows: Any) -> list[int]:
            if self.turning:
                self.costly = "other" if self.costly == "model" else "model"
            return super().choose(rows)

        def observe(self, report: Any) -> None:
            self.steps += 1

    members: list[Drafter] = []
    for name in ("model", "other"):
        member = ModelDrafter(ModelRunner(model("llama"), ROWS))
        member.name = name
        members.append(member)
    chain = ChainDrafter([], members)
    chain.choice = Turning(4, ["model", "other"])
    made, _ = run("llama", chain, chain.choice)
    assert wrong(made, "llama") == []
    found = counts(made)
    assert set(found) == {"model", "other"}
    for drafted, accepted in found.values():
        assert drafted == accepted > 10


def neighbours(patch: pytest.MonkeyPatch) -> None:
    """A row takes the guess of the row beside it."""
    joined = ChainDrafter._joined

    def shifted(self: ChainDrafter, settled: Any, names: Any, drafts: Any, made: Any) -> Draft:
        rolled = [Draft(mx.roll(d.tokens, 1, axis=0), d.counts, d.lengths) for d in drafts]
        return joined(self, settled, names, rolled, made)

    patch.setattr(ChainDrafter, "_joined", shifted)


def slot_0(patch: pytest.MonkeyPatch) -> None:
    """What the draft model lacks of slot 0 is taken for what it lacks of every row."""
    first = ModelDrafter.covers

    def same(self: ModelDrafter) -> list[bool]:
        riding = self._riding
        riding.lag = [riding.lag[0]] * len(riding.lag)
        return first(self)

    patch.setattr(ModelDrafter, "covers", same)


def text_of_slot_0(patch: pytest.MonkeyPatch) -> None:
    """The draft model reads what row 0 has gained, for every row."""
    right = ModelDrafter._span

    def span(self: ModelDrafter, tokens: mx.array, starts: mx.array, width: int) -> mx.array:
        own = right(self, tokens, starts, width)
        return mx.broadcast_to(own[:1], own.shape)

    patch.setattr(ModelDrafter, "_span", span)


def not_told(patch: pytest.MonkeyPatch) -> None:
    """The draft model believes that its own guesses were verified."""
    propose = ModelDrafter.propose

    def deaf(self: ModelDrafter, context: DraftContext, count: int) -> Draft:
        return propose(self, replace(context, taken=()), count)

    patch.setattr(ModelDrafter, "propose", deaf)


def one_token(patch: pytest.MonkeyPatch) -> None:
    """A step without the draft model is taken for one that adds one token a row."""
    skip = ModelDrafter.skip
    patch.setattr(ModelDrafter, "skip", lambda self, most=1: skip(self))


def by_length() -> list[dict[str, tuple[int, int]]]:
    """Drafted and accepted, where the model guesses one token, two or three."""
    found = []
    for length in (1, 2, 3):
        chain = ChainDrafter([NowAndThen(texts("llama"), quiet=False)], chained("llama").costly)
        chain.choice = FixedSources(length, ["model"])
        made, _ = run("llama", chain, FixedDraftLength(9))
        assert wrong(made, "llama") == []
        found.append(counts(made))
    return found


def refused(found: list[dict[str, tuple[int, int]]], source: str) -> int:
    return sum(drafted - accepted for drafted, accepted in (each[source] for each in found))


def test_without_a_bug_no_guess_is_refused() -> None:
    found = by_length()
    for each in found:
        assert min(drafted for drafted, _ in each.values()) > 5
    assert refused(found, "model") == refused(found, "ngram") == 0


@pytest.mark.parametrize("plant", [neighbours, slot_0, text_of_slot_0, not_told, one_token])
def test_a_planted_bug_is_a_guess_that_is_refused(
    plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No text depends on a draft; how often it is right does."""
    plant(monkeypatch)
    found = by_length()
    assert refused(found, "ngram" if plant is neighbours else "model") > 3
