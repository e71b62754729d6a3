"""Prompts of different lengths that are read in one pass: packed, as each is read alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.fed_rows import FedPass
from mlx_spec.decoding.feeding import Feeder
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.models import VOCABULARY
from tests.scenario import target

Patch = pytest.MonkeyPatch
LENGTHS = (3, 90, 41, 17, 66)


def rows() -> list[Sequence]:
    sampling = SamplingParams(max_tokens=4, top_logprobs=2, prompt_logprobs=True)
    return [
        Sequence([(7 * n + 3 * length) % VOCABULARY for n in range(length)], sampling, index=length)
        for length in LENGTHS
    ]


def read(
    patch: Patch, size: int = len(LENGTHS), *, debug: bool = True
) -> tuple[list[Any], list[FedPass]]:
    """What the rows say, and what is said of their prompts; and the passes that read them."""
    passes: list[FedPass] = []
    right = Feeder._read

    def noted(self: Feeder, part: FedPass, slots: Any) -> Any:
        passes.append(part)
        return right(self, part, slots)

    with patch.context() as own:
        own.setattr(Feeder, "_read", noted)
        batching = BatchingConfig(batch_size=size)
        decoder = SpeculativeDecoder(target("llama"), batching=batching, debug=debug)
        made = rows()
        todo = list(made)
        while todo or decoder.busy:
            now, todo = todo[: decoder.free_rows], todo[decoder.free_rows :]
            decoder.add(now)
            decoder.step()
    said = [
        (row.tokens, [(one.token, round(one.logprob, 3)) for one in row.prompt_logprobs])
        for row in made
    ]
    return said, passes


def test_they_are_read_together_without_holes(monkeypatch: Patch) -> None:
    together, passes = read(monkeypatch)
    alone, each = read(monkeypatch, 1)
    assert together == alone
    assert len(passes) == 1 < len(each)
    assert passes[0].packs
    assert passes[0].tokens == sum(LENGTHS) - len(LENGTHS)
    monkeypatch.setattr(ModelRunner, "packs", False)
    padded, more = read(monkeypatch)
    assert padded == alone
    assert len(more) > 1
    assert not any(part.packs for part in more)
    assert sum(part.tokens for part in more) > passes[0].tokens


def lines_mixed_up(patch: Patch) -> None:
    """Listeners are given the logits of the packed pass's tokens one place on."""
    right = TokenPacking.spread
    patch.setattr(
        TokenPacking, "spread", lambda self, tokens: right(self, mx.roll(tokens, 1, axis=0))
    )


def holes_written_before_the_end(patch: Patch) -> None:
    """A row's last token stands at its first place too."""
    right = TokenPacking.of

    def planted(counts: Any, tokens: int, *more: Any) -> TokenPacking:
        own = right(counts, tokens, *more)
        index = mx.concatenate([own.index[:, -1:], own.index[:, 1:]], axis=1)
        return replace(own, index=index)

    patch.setattr(TokenPacking, "of", planted)


@pytest.mark.parametrize("plant", [lines_mixed_up, holes_written_before_the_end])
def test_a_planted_bug_shows(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    right, _ = read(monkeypatch)
    plant(monkeypatch)
    assert read(monkeypatch, debug=False)[0] != right
