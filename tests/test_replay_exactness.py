"""Drafts by traced passes change no output, and guess as well as described ones.

Real traces are made, for which MLX's CPU build wants a C++ compiler and, once a machine, seconds:
all tests are slow ones. The rows of a batch join, leave, end and grow past the slots' positions.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.kernel_binding import OPERATIONS, bind_operations
from mlx_spec.model.replay import Replay
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.scenario import Job, make_jobs, mlx_lm_greedy, noisy_draft, run_jobs, target, wrong_rows

pytestmark = pytest.mark.slow


def make_decoder(draft: Any, rows: int, policy: Any, traced: bool = True) -> SpeculativeDecoder:
    runner = ModelRunner(draft, rows)
    replay = Replay(runner, after=1, most=4) if traced else None
    return SpeculativeDecoder(
        target("llama"),
        drafter=ModelDrafter(runner, replay=replay),
        policy=policy,
        batching=BatchingConfig(batch_size=rows, prefill_step_size=16),
    )


def traces(decoder: SpeculativeDecoder) -> int:
    return int(decoder.drafter._forward.__self__.traces)  # type: ignore[attr-defined]


def guessed(sequences: list[Sequence]) -> tuple[int, int]:
    return sum(s.drafted for s in sequences), sum(s.accepted for s in sequences)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_ragged_rows_that_join_and_leave_equal_the_target_alone(sampled: bool) -> None:
    jobs = make_jobs("llama", sampled, 5 if sampled else 9)
    counts = []
    for traced in (True, False):
        decoder = make_decoder(noisy_draft("llama"), 4, RaggedPolicy(), traced)
        sequences = run_jobs(decoder, jobs)
        assert wrong_rows(jobs, sequences) == []
        assert not traced or traces(decoder) > 2
        counts.append(guessed(sequences))
    # A stale row, position or array would cost nearly all of the guesses.
    assert counts[0][1] / counts[0][0] == pytest.approx(counts[1][1] / counts[1][0], abs=0.02)


def test_texts_that_outgrow_their_slots() -> None:
    prompts = [(1, 2, 3), (4,) * 30]
    options = SamplingParams(max_tokens=280)
    jobs = tuple(
        Job(prompt, options, tuple(mlx_lm_greedy(target("llama"), prompt, 280)), arrival=0)
        for prompt in prompts
    )
    decoder = make_decoder(target("llama"), 2, FixedDraftLength(4))
    sequences = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, sequences) == []
    drafted, accepted = guessed(sequences)
    assert accepted > 0.98 * drafted  # the target itself guesses
    assert 2 < traces(decoder) <= 8  # two widths, and other limits and slots now and then


def test_two_decoders_on_one_draft_in_two_threads() -> None:
    jobs = make_jobs("llama", False, 7)

    def work(rows: int) -> tuple[list[int], tuple[int, int]]:
        decoder = make_decoder(target("llama"), rows, FixedDraftLength(3))
        sequences = run_jobs(decoder, jobs)
        return wrong_rows(jobs, sequences), guessed(sequences)

    with ThreadPoolExecutor(2) as pool:
        for wrong, (drafted, accepted) in pool.map(work, (3, 3)):
            assert wrong == []
            assert accepted > 0.95 * drafted


def test_one_decoder_in_one_thread_after_the_other() -> None:
    jobs = make_jobs("llama", False, 5)
    decoder = make_decoder(target("llama"), 3, FixedDraftLength(3))
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            sequences = pool.submit(run_jobs, decoder, jobs).result(120)
        assert wrong_rows(jobs, sequences) == []
        drafted, accepted = guessed(sequences)
        assert accepted > 0.95 * drafted


def test_a_quantized_draft() -> None:
    draft = make_model("llama", hidden_size=64, intermediate_size=64, head_dim=8)
    nn.quantize(draft, group_size=32, bits=8)
    mx.eval(draft.parameters())
    jobs = make_jobs("llama", False, 7)
    decoder = make_decoder(draft, 4, FixedDraftLength(3))
    assert wrong_rows(jobs, run_jobs(decoder, jobs)) == []
    assert traces(decoder) > 1


def test_kernels_bound_in_target_and_draft() -> None:
    jobs = make_jobs("llama", False, 7)
    bind = {"attention": OPERATIONS["attention"].reference}  # by the span's lengths, no mask
    with bind_operations(target("llama"), bind), bind_operations(noisy_draft("llama"), bind):
        decoder = make_decoder(noisy_draft("llama"), 4, FixedDraftLength(3))
        assert wrong_rows(jobs, run_jobs(decoder, jobs)) == []
        assert traces(decoder) > 1


def test_the_options_make_a_drafter_that_traces_only_where_it_pays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for pays in (True, False):
        monkeypatch.setattr(
            "mlx_spec.decoding.drafters.registry.replay_pays", lambda pays=pays: pays
        )
        decoder = SpeculativeDecoder(
            target("llama"),
            draft_model=noisy_draft("llama"),
            speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
        )
        assert isinstance(decoder.drafter, ModelDrafter)
        owner = decoder.drafter._forward.__self__  # type: ignore[attr-defined]
        assert isinstance(owner, Replay if pays else ModelRunner)
