"""Whose guess a token was: each chunk names its own row's drafter, of several in one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import SpeculationConfig, stream_batch_generate
from mlx_spec.batching.output import make_chunks
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.control.offers import FixedSources
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.decoding.drafters.chain import ChainDrafter
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner
from mlx_spec.results import GenerationChunk
from mlx_spec.sequence import Sequence
from tests.drafter_runs import SAID
from tests.scenario import noisy_draft, target
from tests.test_chain import texts
from tests.test_counts import CutAt
from tests.test_draft_kinds import model, prompt

ROWS, REQUESTS = 3, 5
Said = dict[tuple[int, int], tuple[str, list[int]]]


class Turns(BaseDrafter):
    """Guesses for a row now and then, right but for every fourth position, and keeps note of it."""

    needs_host = True

    def __init__(self, name: str, turn: int, said: Said) -> None:
        self.name, self._turn, self._said = name, turn, said
        self._texts = texts("llama")

    def propose(self, context: DraftContext, count: int) -> Draft:
        guesses = [self._guess(row, count) for row in context.sequences]
        lengths = [len(guess) for guess in guesses]
        width = max(lengths)
        tokens = mx.array([guess + [0] * (width - len(guess)) for guess in guesses], mx.int32)
        return Draft(tokens.reshape(len(guesses), width), lengths=lengths)

    def _guess(self, row: Sequence, count: int) -> list[int]:
        at = row.length
        if (at + row.index) % 3 != self._turn:
            return []
        right = self._texts[row.index][at : at + min(count, 1 + at % 5)]
        guess = [(t + 1) % 64 if (at + i) % 4 == 0 else t for i, t in enumerate(right)]
        if guess:
            self._said[row.index, at] = (self.name, guess)
        return guess


def served() -> Iterator[tuple[list[GenerationChunk], tuple[str, list[int]] | None]]:
    """What each row gains in each step, and who had found something for it, with what."""
    said: Said = {}
    drafter = ModelDrafter(ModelRunner(model("llama"), ROWS))
    drafter.name = "model"
    chain = ChainDrafter([Turns("left", 0, said), Turns("right", 1, said)], [drafter])
    chain.choice = FixedSources(3, ["model"])
    decoder = SpeculativeDecoder(
        model("llama"),
        drafter=chain,
        policy=chain.choice,
        batching=BatchingConfig(batch_size=ROWS, prefill_step_size=16, prefill_interleave=8),
    )
    todo = [
        Sequence(list(prompt(i)), SamplingParams(max_tokens=20 + 3 * i), index=i, text=CutAt())
        for i in range(REQUESTS)
    ]
    while todo or decoder.busy:
        joining, todo = todo[: decoder.free_rows], todo[decoder.free_rows :]
        decoder.add(joining)
        for output in decoder.step():
            row = output.sequence
            begun = row.length - len(output.tokens)
            yield make_chunks(output), said.get((row.index, begun))


def named_wrongly(counts: Counter[str | None]) -> int:
    """Chunks that name another than who guessed; counts those of each by name."""
    wrong = 0
    for chunks, found in served():
        name, guess = found or ("model", None)
        for place, chunk in enumerate(chunks):
            counts[chunk.drafter] += 1
            wrong += chunk.drafter != (name if chunk.from_draft else None)
            # Where it was looked up: what is said to be its guess is.
            wrong += guess is not None and chunk.from_draft and guess[place] != chunk.token
    return wrong


def test_each_token_names_the_drafter_of_its_row() -> None:
    """Three drafters in turns over three rows, drafts of many lengths, requests come and go."""
    counts: Counter[str | None] = Counter()
    assert named_wrongly(counts) == 0
    assert set(counts) == {"left", "right", "model", None}
    assert min(counts.values()) > 10


def of_the_row_beside(patch: pytest.MonkeyPatch) -> None:
    joined = ChainDrafter._joined

    def mixed(self: ChainDrafter, *what: Any) -> Draft:
        draft = joined(self, *what)
        assert draft.sources is not None
        return replace(draft, sources=[*draft.sources[1:], draft.sources[0]])

    patch.setattr(ChainDrafter, "_joined", mixed)


def of_the_whole_chain(patch: pytest.MonkeyPatch) -> None:
    joined = ChainDrafter._joined
    patch.setattr(
        ChainDrafter,
        "_joined",
        lambda self, *what: replace(joined(self, *what), sources=None),
    )


@pytest.mark.parametrize("bug", [of_the_row_beside, of_the_whole_chain])
def test_a_wrong_name_shows(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    assert named_wrongly(Counter()) > 0


def test_names_add_up_to_each_requests_figures() -> None:
    """Through the API, with the drafters that users name; texts repeat themselves, by a bias."""
    prompts = [[5, 6, 7, 8] * 6, [3, 17, 4, 1, 5, 9, 2, 6], [29, 41] * 9, [1]]
    stream = stream_batch_generate(
        target("llama"),
        None,
        prompts,
        max_tokens=40,
        logit_bias=SAID,
        draft_model=noisy_draft("llama"),
        speculation=SpeculationConfig(draft="ngram+model", adaptive=False, num_draft_tokens=4),
        batching=BatchingConfig(batch_size=3),
    )
    named: list[Counter[str]] = [Counter() for _ in prompts]
    for chunk in stream:
        assert (chunk.drafter is None) is not chunk.from_draft
        if chunk.drafter is not None:
            named[chunk.index][chunk.drafter] += 1
    for counts, result in zip(named, stream.result().results, strict=True):
        accepted = {name: own.accepted for name, own in result.drafters.items() if own.accepted}
        assert counts == accepted
    assert {name for counts in named for name in counts} == {"ngram", "model"}
    # Without a draft nobody is named.
    plain = stream_batch_generate(target("llama"), None, prompts, max_tokens=4)
    assert {chunk.drafter for chunk in plain} == {None}
