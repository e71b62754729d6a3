"""Watchers: what else is read of a step comes together with its tokens, and costs nobody else."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.outputs import StepGains
from mlx_spec.decoding.watching import Chosen, Watcher
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.scenario import make_jobs, noisy_draft, run_jobs, target, wrong_rows

ROWS = 3


class Tops(Watcher):
    """Keeps the samples of rows with an even number, as it reads them."""

    def __init__(self) -> None:
        self.seen: dict[int, list[int]] = {}
        self.asked = self.watched = 0

    def concerns(self, sequences: Seq[Sequence]) -> bool:
        self.asked += 1
        return any(sequence.index % 2 == 0 for sequence in sequences)

    def watch(self, chosen: Chosen) -> list[mx.array]:
        self.watched += 1
        return [mx.argmax(chosen.logits, axis=-1)]

    def take(self, gains: StepGains, values: list[Any]) -> None:
        for row, output in zip(values[0].tolist(), gains.outputs, strict=True):
            if output is not None and output.sequence.index % 2 == 0:
                self.seen.setdefault(output.sequence.index, []).extend(row[: len(output.tokens)])


@pytest.mark.parametrize("in_turn", [False, True])
def test_what_is_watched_comes_with_the_tokens(in_turn: bool) -> None:
    """Ragged drafts, joins, leaves; steps built ahead, some of them dropped, and in turn."""
    drafter = ModelDrafter(ModelRunner(noisy_draft("llama"), ROWS))
    drafter.needs_host = in_turn
    tops = Tops()
    drafter.watchers = (tops,)
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=drafter,
        policy=RaggedPolicy(4),
        batching=BatchingConfig(batch_size=ROWS),
    )
    jobs = make_jobs("llama", False, 7)
    rows = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, rows) == []
    assert tops.seen == {row.index: row.tokens for row in rows if row.index % 2 == 0}
    assert sum(row.accepted for row in rows) > 10
    assert sum(row.drafted - row.accepted for row in rows) > 3
    assert (decoder.meter.ahead > 0) is not in_turn
    assert 0 < tops.watched < tops.asked
