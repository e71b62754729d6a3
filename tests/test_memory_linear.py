"""Memory grows with the batch on a straight line: bytes, so exact."""

from __future__ import annotations

import gc
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.batching.engine import Engine
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.sequence import Sequence
from tests.models import VOCABULARY
from tests.scenario import noisy_draft, target

BATCHES = (1, 2, 4, 8, 16, 32)
PROMPT, NEW = 150, 12
# Beside K/V: what the step in flight gives, and tokens of a row. K/V of a row are 45 KB here, 90 KB
# with a draft's, in four buffers and eight: a second copy of one of them would not pass.
BASE, PER_ROW = 64_000, 4_000


def held(batch: int, draft: bool, apart: int = 0) -> tuple[int, int]:
    """Most K/V bytes, and most bytes that MLX held beside the models, over a whole batch.

    Requests come ``apart`` steps after each other, each with longer texts than the one before, so
    that slots grow in number and in length.
    """
    gc.collect()
    mx.clear_cache()
    models = mx.get_active_memory()
    engine = Engine(
        target("llama"),
        None,
        draft_model=noisy_draft("llama") if draft else None,
        batching=BatchingConfig(batch_size=batch),
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
    )
    rows = list(range(batch))
    kv = active = steps = 0
    while engine.busy or rows:
        while rows and steps >= apart * rows[0]:
            row = rows.pop(0)
            length = PROMPT - (batch - 1 - row if apart else 0)
            prompt = [(7 * place + row) % VOCABULARY for place in range(length)]
            new = NEW + apart * 2 * batch  # the last one finds all of them there
            engine.submit(Sequence(prompt, SamplingParams(max_tokens=new), index=row))
        engine.step(hurry=True)
        steps += 1
        kv = max(kv, engine.kv_usage().bytes_held)
        engine.decoder.device.synchronize()  # what computing needs is none of what is held
        active = max(active, mx.get_active_memory() - models)
    return kv, active


@pytest.mark.parametrize("draft", [False, True], ids=["plain", "drafted"])
def test_a_row_more_costs_a_row_more(draft: bool) -> None:
    target("llama"), noisy_draft("llama")  # made before anything is counted
    held(1, draft)
    (one, _), *_ = measured = [held(batch, draft) for batch in BATCHES]
    assert one > 0
    for batch, (kv, active) in zip(BATCHES, measured, strict=True):
        # A row's bytes for every row, and not one beside them.
        assert kv == batch * one
        assert kv <= active <= kv + BASE + batch * PER_ROW


@pytest.mark.parametrize("draft", [False, True], ids=["plain", "drafted"])
def test_rows_that_come_one_by_one_leave_nothing_behind(draft: bool) -> None:
    """Slots grow in number and length; when all rows run, what was before is gone."""
    batch = 8
    target("llama"), noisy_draft("llama")
    held(1, draft, 2)
    together, _ = held(batch, draft)
    kv, active = held(batch, draft, 2)
    assert together < kv <= together * (PROMPT + NEW + 4 * batch) / PROMPT
    assert kv <= active <= kv + BASE + batch * PER_ROW


def test_a_buffer_that_somebody_holds_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: one layer's keys of the step before are still referred to, so they are copied."""
    target("llama")
    kept: list[mx.array] = []
    right = Stepper.launch

    def planted(self: Stepper, *args: Any) -> Any:
        flight = right(self, *args)
        kept[:] = [*kept[-1:], *self.parts.runner.pool.layers[0].arrays[:1]]
        return flight

    held(1, False)
    monkeypatch.setattr(Stepper, "launch", planted)
    batch = 32
    kv, active = held(batch, False)
    assert active > kv + BASE + batch * PER_ROW
