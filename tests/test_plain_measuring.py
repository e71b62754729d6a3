"""What plain decoding measures, and what its steps say of it: really timed, on tiny models."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_spec.config import BatchingConfig
from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.decoding import timed_part
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.sequence import Sequence
from tests.models import make_model
from tests.test_measuring import folder as folder  # of each test's own, for these too
from tests.test_measuring import run


def test_plain_passes_may_be_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a few, and nothing to draft: the widths near theirs are timed."""
    model = make_model(seed=1)
    few = SpeculativeDecoder(model, batching=BatchingConfig(batch_size=8))
    run(few)
    assert few.speculation.measuring.told == ""
    made = SpeculativeDecoder(model, batching=BatchingConfig(batch_size=8))
    rows = [Sequence(prompt=[n + 1, n + 2], max_new_tokens=4) for n in range(7)]
    made.add(rows)
    while made.busy:
        made.step()
    assert made.speculation.measuring.prices.target.points[1].keys() == {7, 8, 10, 12, 14, 15}


@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_correct_what_passes_are_padded_by_whoever_chooses_lengths(
    adaptive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each clean step once; a table that nobody corrects would pad wrongly for ever."""
    monkeypatch.setattr(timed_part.PassTimer, "time", lambda self, describe, order: {
        tokens: 1e-3 * tokens for tokens in order
    })  # fmt: skip
    told: list[int] = []
    own = PassCosts.note_step

    def note(self: PassCosts, work: Any, seconds: float, beside: Any = ()) -> None:
        told.append(work[0])
        own(self, work, seconds, beside)

    monkeypatch.setattr(PassCosts, "note_step", note)
    model = make_model(seed=1)
    draft = make_model(seed=2) if adaptive else None
    made = SpeculativeDecoder(model, draft_model=draft, batching=BatchingConfig(batch_size=8))
    rows = [Sequence(prompt=[n + 1, n + 2], max_new_tokens=24) for n in range(7)]
    made.add(rows)
    while made.busy:
        made.step()
    assert made.meter.steps / 2 < len(told) <= made.meter.steps
    assert made.speculation.measuring.prices.target.speed.times != 1


def test_plain_passes_of_more_rows_are_timed_when_they_come() -> None:
    model = make_model(seed=1)
    made = SpeculativeDecoder(model, batching=BatchingConfig(batch_size=20))
    rows = [Sequence(prompt=[n + 1, n + 2], max_new_tokens=12) for n in range(18)]
    made.add(rows[:5])
    made.step()
    assert made.speculation.measuring.prices.target.points[1].keys() == {5, 6, 8, 10, 12}
    made.add(rows[5:])
    while made.busy:
        made.step()
    assert {18, 24, 30, 32, 33, 40} <= made.speculation.measuring.prices.target.points[1].keys()
    alone = [run_alone(model, row.prompt) for row in rows]
    assert [row.tokens for row in rows] == alone


def run_alone(model: Any, prompt: list[int]) -> list[int]:
    made = SpeculativeDecoder(model, batching=BatchingConfig(batch_size=1))
    row = Sequence(prompt=list(prompt), max_new_tokens=12)
    made.add([row])
    while made.busy:
        made.step()
    return row.tokens
