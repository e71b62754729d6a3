"""A request may want fewer guesses than the engine would make, or none: its neighbours keep theirs.

Each stops a drafter, or a policy, that guesses past what a row has room for.
"""

from __future__ import annotations

from typing import Any

import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.control.report import StepReport
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.predicted import PredictedText
from mlx_spec.errors import InvalidRequest
from tests.drafter_runs import alone, random_head, request
from tests.preemption import preempt
from tests.scenario import noisy_draft, target

LIMITS = (0, None, 2, 0, 1)
MOST = 5
CHAINS = ("predicted+ngram", "ngram+model")
GIVEN: dict[str, Any] = {"model": lambda: noisy_draft("llama", 0.3), "head": random_head}


@pytest.mark.parametrize(
    ("draft", "adaptive"),
    [
        *((draft, False) for draft in ("model", "ngram", "head", "self", "lookahead")),
        *((draft, adaptive) for draft in CHAINS for adaptive in (False, True)),
    ],
)
def test_a_row_has_no_more_guesses_than_it_wants(
    draft: str, adaptive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five requests in three slots, one preempted, each with a limit of its own."""
    made = [GIVEN[name]() for name in draft.split("+") if name in GIVEN]
    config = SpeculationConfig(
        draft=draft,
        draft_layers=(0,) if draft == "self" else None,
        num_draft_tokens=MOST,
        adaptive=adaptive,
    )
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=made[0] if made else None,
        speculation=config,
        batching=BatchingConfig(batch_size=3, prefill_step_size=16, prefill_interleave=8),
    )
    rows = [request(index, False) for index in range(len(LIMITS))]
    for row, limit in zip(rows, LIMITS, strict=True):
        object.__setattr__(row.sampling, "num_draft_tokens", limit)
        if "predicted" in draft:
            row.prediction = PredictedText(list(alone("llama", row.index, False)))
    seen: list[StepReport] = []
    observe = decoder.policy.observe
    monkeypatch.setattr(decoder.policy, "observe", lambda r: (seen.append(r), observe(r)))
    preempt(decoder, rows)
    assert [tuple(row.tokens) for row in rows] == [alone("llama", n, False) for n in range(5)]
    assert [row.drafted for row in rows if row.sampling.num_draft_tokens == 0] == [0, 0]
    assert sum(row.drafted for row in rows) > 0
    for report in seen:
        for row, guesses in zip(report.rows, report.lengths, strict=True):
            limit = LIMITS[rows.index(row)]
            assert guesses <= (MOST if limit is None else limit)
    if draft in ("model", "head", "self"):
        assert rows[1].drafted > 2 * rows[1].steps  # more than its neighbours may have


def test_a_limit_is_checked() -> None:
    assert SamplingParams(num_draft_tokens=0).num_draft_tokens == 0
    for wrong in (-1, 1.5, "2"):
        with pytest.raises(InvalidRequest, match="num_draft_tokens"):
            SamplingParams(num_draft_tokens=wrong)  # type: ignore[arg-type]
