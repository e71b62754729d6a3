"""A stranger's drafter: one file, exact in a batch, on the device and on the host."""

from __future__ import annotations

import inspect
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.control.report import StepReport
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from tests.fakes import RaggedPolicy
from tests.scenario import make_jobs, run_jobs, target, wrong_rows
from tests.toys import repeat_drafter
from tests.toys.repeat_drafter import HostRepeatDrafter, RepeatDrafter

ROWS = 4


class ListeningPolicy:
    """Another policy, and what it is told."""

    def __init__(self, policy: DraftLengthPolicy) -> None:
        self._policy = policy
        self.reports: list[StepReport] = []
        self.choose, self.forget = policy.choose, policy.forget

    def observe(self, report: StepReport) -> None:
        self._policy.observe(report)
        self.reports.append(report)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", [RepeatDrafter(), HostRepeatDrafter()], ids=["device", "host"])
def test_it_is_right_at_times_and_never_changes_a_text(drafter: BaseDrafter, sampled: bool) -> None:
    jobs = make_jobs("llama", sampled, 2 * ROWS + 1)
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=drafter,
        policy=RaggedPolicy(),
        batching=BatchingConfig(batch_size=ROWS, prefill_step_size=16),
    )
    sequences = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, sequences) == []
    assert 0 < sum(s.accepted for s in sequences) < sum(s.drafted for s in sequences)
    assert (decoder.meter.ahead == 0) is drafter.needs_host


def test_padding_is_no_guess() -> None:
    """What did not count was neither right nor wrong: rates and draft lengths learn from the rest.

    Stops a lookup that finds little from being taken for one that is wrong.
    """

    class Half(RepeatDrafter):
        """Guesses for all rows and lets nothing count for the first, one for the second ..."""

        def propose(self, context: DraftContext, count: int) -> Draft:
            rows = len(context.sequences)
            counts = mx.minimum(mx.arange(rows, dtype=mx.int32), count)
            return Draft(super().propose(context, count).tokens, counts)

    jobs = make_jobs("llama", False, 2 * ROWS + 1)
    policy = ListeningPolicy(FixedDraftLength(3))
    decoder = SpeculativeDecoder(
        target("llama"), drafter=Half(), policy=policy, batching=BatchingConfig(batch_size=ROWS)
    )
    sequences = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, sequences) == []
    for report in policy.reports:
        assert all(length <= row for row, length in enumerate(report.lengths))
        assert len(report.rows) == 1 or (report.longest or 0) > report.lengths[0] == 0
        assert all(a <= k for a, k in zip(report.accepted, report.lengths, strict=True))
    drafted = sum(s.drafted for s in sequences)
    assert drafted <= sum(sum(report.lengths) for report in policy.reports)


def test_the_example_in_the_docs_is_this_one() -> None:
    docs = Path(__file__).parent.parent / "docs" / "drafters.md"
    assert inspect.getsource(repeat_drafter.RepeatDrafter) in docs.read_text(encoding="utf-8")
    assert inspect.getsource(repeat_drafter.HostRepeatDrafter) in docs.read_text(encoding="utf-8")
