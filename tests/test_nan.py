"""A row whose logits are no numbers ends with an error, and its neighbours go on exactly.

The model here is sound but for the embedding of one token, which is NaN: whoever has that token
among what is known fails, and nobody else does, whatever the drafter proposes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import BatchedMLXGenerator, batch_generate
from mlx_spec.cli.main import main
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.acceptance import NO_NUMBERS, refuse_nan
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import Draft, DraftContext
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.loader import load
from mlx_spec.model.runner import ModelRunner
from tests.fakes import CyclingPolicy, RaggedPolicy
from tests.folders import write_folder
from tests.models import make_model
from tests.sampling_support import batch_of
from tests.scenario import Job, make_jobs, noisy_draft, run_jobs

BAD = 13  # said by some, read by one, unknown to the others
COUNT = 12


@cache
def broken() -> Any:
    """The scenario's model, with one token that it cannot bear."""
    model = make_model("llama")
    weight = model.model.embed_tokens.weight
    weight[BAD] = mx.nan
    mx.eval(weight)
    return model


@cache
def cases(sampled: bool) -> tuple[tuple[Job, ...], list[bool]]:
    """The scenario's requests as far as they can go, and which of them fail."""
    given, fails = [], []
    for job in make_jobs("llama", sampled, COUNT):
        expected = () if BAD in job.prompt else job.expected
        if BAD in expected:
            expected = expected[: expected.index(BAD) + 1]
        # A bad token that comes last is never read.
        fails.append(len(expected) < len(job.expected))
        given.append(replace(job, expected=expected))
    assert 2 <= sum(fails) <= COUNT - 4
    return tuple(given), fails


class Hostile(ModelDrafter):
    """Proposes the bad token at every place, or at every third."""

    def __init__(self, rows: int, every: int) -> None:
        super().__init__(ModelRunner(make_model("llama"), rows))
        self._every = every

    def propose(self, context: DraftContext, count: int) -> Draft:
        draft = super().propose(context, count).tokens
        places = (context.lengths[:, None] + mx.arange(count)) % self._every
        return Draft(mx.where(places == 0, BAD, draft))


def check(decoder: SpeculativeDecoder, sampled: bool) -> None:
    """Everybody gets what the target alone gives, and who fails says why."""
    jobs, fails = cases(sampled)
    for sequence, job, failing in zip(run_jobs(decoder, jobs), jobs, fails, strict=True):
        assert tuple(sequence.tokens) == job.expected, sequence.index
        assert (sequence.finish_reason == "error") is failing, sequence.index
        if failing:
            assert f"not numbers after {sequence.length} tokens" in str(sequence.error)
    assert not decoder._stepper.suspects


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", ["none", "noisy", "always bad", "now and then bad"])
def test_only_rows_that_know_the_bad_token_fail(drafter: str, sampled: bool) -> None:
    """With joins and leaves, one's slot being the next one's, and drafts that spoil passes."""
    rows = 4
    batching = BatchingConfig(batch_size=rows, prefill_step_size=8, prefill_interleave=3)
    if drafter in ("none", "noisy"):
        decoder = SpeculativeDecoder(
            broken(),
            draft_model=noisy_draft("llama") if drafter == "noisy" else None,
            batching=batching,
            policy=None if drafter == "none" else CyclingPolicy([4, 0, 2]),
        )
    else:
        hostile = Hostile(rows, 1 if drafter == "always bad" else 3)
        policy = RaggedPolicy(4)
        decoder = SpeculativeDecoder(broken(), drafter=hostile, batching=batching, policy=policy)
    check(decoder, sampled)


def test_a_beginning_that_was_spoilt_is_not_kept() -> None:
    """Layers give NaN to what stands before a bad token in the same pass: others share that."""
    begin = [5, 9, 2, 7, 3, 8, 1, 4]
    sampling = SamplingParams(max_tokens=6)
    batching = BatchingConfig(
        batch_size=2, block_size=4, batch_timeout=0.0, prefix_cache_bytes=2**20
    )
    prompts = [[*begin, BAD, 1, 2, 3], [*begin, 1], [*begin, 2]]
    expected = batch_generate(make_model("llama"), None, prompts, sampling=sampling).results
    with BatchedMLXGenerator(broken(), None, batching=batching) as generator:
        results = [generator.generate([prompt], sampling)[0] for prompt in prompts]
        stats = generator.stats()
    assert [result.finish_reason for result in results] == ["error", "length", "length"]
    assert [r.token_ids for r in results[1:]] == [r.token_ids for r in expected[1:]]
    assert results[2].reused_tokens == 8  # what the sound one left behind
    assert stats.running == stats.waiting == 0


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("vocabulary", [40, 48])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
def test_what_counts_as_no_numbers(kind: str, vocabulary: int, options: dict[str, Any]) -> None:
    logits = mx.random.normal((6, 3, vocabulary)).astype(getattr(mx, kind))
    logits[1, 2, 39] = mx.nan
    logits[2, 0, 0] = mx.inf
    logits[3, 1] = -mx.inf  # nothing left to choose
    logits[4, :, 7:] = -mx.inf  # a model's own mask
    logits[5] = mx.nan
    batch = batch_of([{}, options] * 3)
    tops = batch.sample(logits, mx.zeros((6, 3), mx.int32), tops=True).tops
    accepted = refuse_nan(mx.array([2, 2, 0, 1, 2, 0]), tops)
    assert accepted.tolist() == [2, NO_NUMBERS, NO_NUMBERS, NO_NUMBERS, 2, NO_NUMBERS]


def test_the_result_says_why() -> None:
    speculation = SpeculationConfig(num_draft_tokens=2, adaptive=False)
    result = batch_generate(
        broken(),
        None,
        [[1, BAD], [1, 2]],
        draft_model=make_model("llama"),
        sampling=SamplingParams(max_tokens=8),
        speculation=speculation,
    )
    failed, sound = result.results
    assert (failed.finish_reason, failed.token_ids, failed.text) == ("error", [], "")
    assert "logits are not numbers after 2 tokens" in str(failed.error)
    assert (sound.finish_reason, sound.error, len(sound.token_ids)) == ("length", None, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose weights are broken for the letter X."""
    made = write_folder(tmp_path / "broken")
    weights = mx.load(str(made / "model.safetensors"))
    letter = load(made)[1].encode("X")[-1]
    name = next(name for name in weights if name.endswith("embed_tokens.weight"))
    weights[name][letter] = mx.nan
    mx.save_safetensors(str(made / "model.safetensors"), weights)
    return made


def test_the_command_says_it_in_a_line_and_exits_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(folder), "-m", "3", "-q"]
    assert main(["generate", "-p", "aXb", "-p", "ab", *options]) == 1
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if "failed" in line]
    assert "prompt 1 of 2 failed: " in line
    assert "logits are not numbers" in line
    assert main(["generate", "-p", "ab", *options]) == 0


def test_a_batch_writes_it_into_the_record(folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"prompt": "{text}"}}\n' for text in ("ab", "aXb", "ba", "X")))
    assert main(["batch", str(source), str(out), "--model", str(folder), "-m", "3", "-q"]) == 1
    records = [json.loads(line) for line in out.read_text().splitlines()]
    errors = [record.get("error") or "" for record in records]
    assert ["logits are not numbers" in error for error in errors] == [False, True, False, True]
    assert [record["_finish_reason"] for record in records] == ["length", "error"] * 2
    assert [record["_generation_tokens"] for record in records] == [3, 0] * 2
