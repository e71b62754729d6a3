"""Every row's tokens equal what the target alone gives, whatever is drafted, joins or leaves.

Greedy rows are compared with mlx-lm's own loop, sampling rows with our plain decoding at B = 1
(which ``test_sampler`` holds against the exact softmax). Runs in float32 on the wheel's own BLAS,
where batched and single rows agree.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.drafters.none import NoDraft
from mlx_spec.errors import InvariantError
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from scripts.simulated.machines import TILES_5
from tests.fakes import CorruptingDrafter, CyclingPolicy, RaggedPolicy, always, every_fifth, never
from tests.models import FAMILIES as MODELS
from tests.models import VOCABULARY
from tests.policies import adaptive
from tests.scenario import make_jobs, mlx_lm_greedy, noisy_draft, run_jobs, target, wrong_rows

FAMILIES = ("llama", "qwen3", "gemma", "olmo2")
DRAFTS = [
    ("none", "zero"),
    *itertools.product(("noisy", "perfect", "hostile"), ("zero", "ragged", "adaptive")),
]


def make_drafter(kind: str, family: str, rows: int) -> Any:
    if kind == "none":
        return NoDraft()
    if kind == "noisy":
        return ModelDrafter(ModelRunner(noisy_draft(family), rows))
    spoil = {"perfect": never, "hostile": always}[kind]
    return CorruptingDrafter(target(family), rows, spoil, VOCABULARY)


def make_policy(kind: str) -> Any:
    if kind == "zero":
        return FixedDraftLength(0)
    if kind == "ragged":
        return RaggedPolicy()
    return adaptive(TILES_5, name=BaseDrafter.name, probe_interval=3)


def make_decoder(family: str, drafter: str, rows: int, policy: str, **more: Any) -> Any:
    return SpeculativeDecoder(
        target(family),
        drafter=make_drafter(drafter, family, rows),
        policy=make_policy(policy),
        batching=BatchingConfig(batch_size=rows, prefill_step_size=more.pop("prefill", 16)),
        **more,
    )


@pytest.mark.cut(11)
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rows", [1, 2, 5, 13])
@pytest.mark.parametrize(("drafter", "policy"), DRAFTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_equals_the_target_alone(
    family: str, drafter: str, rows: int, policy: str, sampled: bool
) -> None:
    jobs = make_jobs(family, sampled, 2 * rows + 1)
    decoder = make_decoder(family, drafter, rows, policy)
    sequences = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, sequences) == []
    drafted = sum(sequence.drafted for sequence in sequences)
    accepted = sum(sequence.accepted for sequence in sequences)
    assert (drafted > 0) is (policy != "zero")
    if policy != "zero":
        assert (accepted > 0) is (drafter != "hostile")
        assert (accepted < drafted) or drafter == "perfect"


@pytest.mark.cut(2)
@pytest.mark.parametrize("family", sorted(set(MODELS) - set(FAMILIES)))
def test_more_families(family: str) -> None:
    """Biases, layer norms, fused projections, experts: unmodified, at one hard setting."""
    for sampled in (False, True):
        jobs = make_jobs(family, sampled, 11)
        decoder = make_decoder(family, "noisy", 5, "ragged")
        made = run_jobs(decoder, jobs)
        assert wrong_rows(jobs, made) == []
        assert 0 < sum(row.accepted for row in made) < sum(row.drafted for row in made)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_state_is_that_of_lone_rows_after_every_step(family: str, sampled: bool) -> None:
    jobs = make_jobs(family, sampled, 11)
    decoder = make_decoder(family, "noisy", 5, "ragged", debug=True)
    sequences = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, sequences) == []
    assert 0 < sum(row.accepted for row in sequences) < sum(row.drafted for row in sequences)


def test_debug_mode_sees_a_spoilt_cache() -> None:
    decoder = make_decoder("llama", "noisy", 3, "ragged", debug=True)
    decoder.add([Sequence([1 + i, 2, 3, 4], SamplingParams(max_tokens=20)) for i in range(3)])
    decoder.step()
    layer = decoder.runner.pool.layers[1]
    layer.values = layer.values + mx.zeros_like(layer.values).at[2, :, 1].add(0.1)
    with pytest.raises(InvariantError, match=r"array 1 of layer 1, slot 2"):
        decoder.step()


def test_debug_mode_sees_lengths_that_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host drops a token that the device keeps."""
    decoder = make_decoder("llama", "perfect", 3, "ragged", debug=True)
    sequences = [Sequence([1 + i, 2, 3, 4], SamplingParams(max_tokens=40)) for i in range(3)]
    decoder.add(sequences)
    while not sequences[1].tokens:  # a step's tokens are read while the next one computes
        decoder.step()
    sequences[1].tokens.pop()
    with pytest.raises(InvariantError, match=r"slot 1 .* on the device, .* on the host"):
        decoder.step()


def test_draft_lengths_that_change_every_step_reach_lagging_drafters() -> None:
    """Plain steps leave the draft's cache behind, by more than rides in one pass too."""
    jobs = make_jobs("llama", False, 11)
    for cycle in ([0, 0, 0, 3], [0] * 12 + [4], [6, 0, 1, 0, 0, 2]):
        decoder = SpeculativeDecoder(
            target("llama"),
            drafter=CorruptingDrafter(target("llama"), 5, never, VOCABULARY),
            policy=CyclingPolicy(cycle),
            batching=BatchingConfig(batch_size=5),
        )
        sequences = run_jobs(decoder, jobs)
        assert wrong_rows(jobs, sequences) == []
        # A drafter that is the target is right whenever its own cache is.
        assert all(
            sequence.accepted == sequence.drafted or sequence.finish_reason == "stop"
            for sequence in sequences
        )


@pytest.mark.parametrize("rows", [1, 4])
def test_perfect_drafts_cost_one_pass_per_run(rows: int) -> None:
    """K accepted and the bonus token: K + 1 tokens a pass, for each row."""
    count, draft = 30, 4
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=target("llama"),
        speculation=SpeculationConfig(num_draft_tokens=draft, adaptive=False),
        batching=BatchingConfig(batch_size=rows),
    )
    sequences = [Sequence([5, 6, 7 + i], SamplingParams(max_tokens=count)) for i in range(rows)]
    decoder.add(sequences)
    while decoder.busy:
        decoder.step()
    assert decoder.meter.steps == math.ceil(count / (draft + 1))
    assert all(len(sequence.tokens) == count for sequence in sequences)


def test_each_row_accepts_its_own_number() -> None:
    """Known wrong positions give known runs: no row waits for another, no bonus is lost."""
    draft, count = 4, 24
    prompts = [[1 + i] * (3 + i) for i in range(5)]
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=CorruptingDrafter(target("llama"), 5, every_fifth, VOCABULARY),
        policy=FixedDraftLength(draft),
        batching=BatchingConfig(batch_size=5),
    )
    sequences = [Sequence(prompt, SamplingParams(max_tokens=count)) for prompt in prompts]
    decoder.add(sequences)
    while decoder.busy:
        decoder.step()
    for prompt, sequence in zip(prompts, sequences, strict=True):
        assert sequence.tokens == mlx_lm_greedy(target("llama"), tuple(prompt), count)
        known, steps = len(prompt), 0
        while known < len(prompt) + count:
            length = min(draft, len(prompt) + count - known - 1)
            run = 0
            while run < length and (known + run) % 5:
                run += 1
            known, steps = known + run + 1, steps + 1
        assert sequence.steps == steps


def test_cancelled_rows_leave_the_others_alone() -> None:
    jobs = make_jobs("qwen3", True, 11)
    decoder = make_decoder("qwen3", "noisy", 5, "ragged")
    victims = [Sequence([9, 9, 9 + i], SamplingParams(max_tokens=400)) for i in range(2)]
    decoder.add(victims)
    decoder.step()
    decoder.step()
    decoder.remove(victims[0])
    rest = list(jobs)
    sequences = [
        Sequence(list(job.prompt), job.sampling, stop_ids=frozenset(job.sampling.stop_token_ids))
        for job in rest
    ]
    waiting, steps = list(sequences), 0
    while waiting or decoder.busy:
        joining = waiting[: decoder.free_rows]
        waiting = waiting[len(joining) :]
        decoder.add(joining)
        decoder.step()
        steps += 1
        if steps == 9:
            decoder.remove(victims[1])
    assert wrong_rows(jobs, sequences) == []
    assert len(victims[0].tokens) < len(victims[1].tokens) < 400


def test_long_prompts_grow_the_cache_mid_flight() -> None:
    """Capacity grows while rows run and newcomers are longer than anything before."""
    prompts = [[3, 1, 4], [7] * 300, [5, 6] * 20]
    decoder = make_decoder("llama", "noisy", 3, "ragged", prefill=64)
    first = Sequence(prompts[0], SamplingParams(max_tokens=280))
    decoder.add([first])
    for _ in range(5):
        decoder.step()
    others = [Sequence(prompt, SamplingParams(max_tokens=20)) for prompt in prompts[1:]]
    decoder.add(others)
    while decoder.busy:
        decoder.step()
    for prompt, sequence in zip(prompts, [first, *others], strict=True):
        count = sequence.sampling.max_tokens
        assert sequence.tokens == mlx_lm_greedy(target("llama"), tuple(prompt), count)
