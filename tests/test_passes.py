"""Forms of a pass: whoever takes one position for all rows is read row by row, and is as exact."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_spec import batch_generate
from mlx_spec.cli.main import main
from mlx_spec.cli.statistics import statistics_lines
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.passes.form import WHOLE, PassForm
from mlx_spec.model.passes.row_by_row import RowByRow
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.model.support import examine
from mlx_spec.sequence import Sequence
from tests.architectures import build, write_architecture
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.preemption import run_with_a_preemption
from tests.scenario import mlx_lm_greedy, plain_alone

ONE_POSITION = ("gpt_bigcode", "internlm2", "internlm3")


@cache
def model(name: str, layers: int = 2) -> Any:
    if name == "llama":
        return make_model("llama", num_hidden_layers=layers)
    return build(name, num_hidden_layers=layers, n_layer=layers)


def make_decoder(target: str, draft: str, debug: bool = False) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        model(target),
        drafter=ModelDrafter(ModelRunner(model(draft, 2 if draft == target else 1), 3)),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(
            batch_size=3, prefill_step_size=16, block_size=8, prefix_cache_bytes=2**20
        ),
        debug=debug,
    )


@pytest.mark.parametrize("name", ONE_POSITION)
def test_a_model_of_one_position_is_read_row_by_row(name: str) -> None:
    support = ModelRunner(model(name), 2).support
    assert (support.verdict, support.form) == ("exact", PassForm(rows_apart=True))
    assert support.form.words == "row by row"
    assert ModelRunner(model("llama"), 2).support.form == WHOLE


@pytest.mark.parametrize(
    ("target", "draft", "debug"),
    [
        ("gpt_bigcode", "gpt_bigcode", False),
        ("internlm2", "internlm2", True),
        ("internlm3", "llama", False),
        ("llama", "gpt_bigcode", False),
    ],
)
def test_row_by_row_equals_the_model_alone(target: str, draft: str, debug: bool) -> None:
    """Ragged drafts, joins, leaves and a preemption; either of the two may need the form."""
    decoder = make_decoder(target, draft, debug)
    made = run_with_a_preemption(decoder, alike=target == draft)
    for row in made:
        expected = mlx_lm_greedy(model(target), tuple(row.prompt), len(row.tokens))
        assert row.tokens == expected, row.index


def test_rows_at_positions_of_their_own_are_lone_rows() -> None:
    """In slots that are not the first, one of them at the beginning."""
    one, pool_of = model("gpt_bigcode"), ModelRunner(model("gpt_bigcode"), 4)
    pool_of.pool.acquire(4)
    pool_of.pool.reserve(16)
    texts = [[(5 * row + 3 * i) % 64 for i in range(10)] for row in range(4)]
    fed = mx.array([text[:6] for text in texts])
    pool_of.feed(Rows(fed, mx.zeros(4, mx.int32), 6, uniform=True), 64, wait=True)
    starts = (6, 0, 4)
    new = mx.array([text[s : s + 3] for text, s in zip(texts[1:], starts, strict=True)])
    where = mx.array(starts, mx.int32)
    logits = pool_of.forward(Rows(new, where, 9, first=1, at=starts))
    pool_of.commit(mx.array([1, 3, 2], mx.int32))
    for row, start in enumerate(starts):
        text = texts[row + 1][: start + 3]
        lone = one(mx.array([text]), cache=make_prompt_cache(one))[0, start:]
        assert mx.allclose(lone, logits[row], atol=1e-5)


def test_without_numbers_there_is_no_row_by_row() -> None:
    runner = ModelRunner(model("gpt_bigcode"), 2)
    runner.pool.acquire(2)
    runner.pool.reserve(8)
    rows = Rows(mx.zeros((2, 1), mx.int32), mx.array([3, 4]), 5)
    with pytest.raises(ValueError, match=r"\[RowByRow.forward\] 2 rows, positions not known"):
        runner.forward(rows)


@pytest.mark.parametrize("roles", [("gpt_bigcode", "llama"), ("llama", "gpt_bigcode")])
def test_steps_are_taken_in_turn_for_target_and_draft_alike(roles: tuple[str, str]) -> None:
    assert make_decoder(*roles)._stepper.waits
    assert not make_decoder("llama", "llama")._stepper.waits


def test_sampling_is_batched_all_the_same() -> None:
    options = SamplingParams(max_tokens=10, temperature=0.9, top_p=0.9, seed=7)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    decoder = make_decoder("gpt_bigcode", "gpt_bigcode")
    rows = [Sequence(prompt, options) for prompt in prompts]
    decoder.add(rows)
    while decoder.busy:
        decoder.step()
    for row in rows:
        assert row.tokens == plain_alone(model("gpt_bigcode"), tuple(row.prompt), options)


def test_a_view_that_kept_its_arrays_would_copy_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two rows' calls nobody but the pool holds them."""
    runner = ModelRunner(model("gpt_bigcode"), 3)
    runner.pool.acquire(3)
    runner.pool.reserve(8)
    views = []
    take_back = runner.pool.take_back

    def watched(view: Any) -> None:
        take_back(view)
        views.append(view)

    monkeypatch.setattr(runner.pool, "take_back", watched)
    runner.forward(Rows(mx.zeros((3, 2), mx.int32), mx.zeros(3, mx.int32), 2, uniform=True))
    assert [view.arrays for view in views] == [[], [], []]
    assert RowByRow.__name__ in type(runner._pass).__name__


def test_what_is_slow_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In the statistics of a run, and of a model before it runs."""
    options = {"sampling": SamplingParams(max_tokens=4)}
    slow, fast = model("gpt_bigcode"), model("llama")
    found = batch_generate(slow, None, [[1, 2, 3]], draft_model=slow, **options)
    assert found.stats.passes == "target row by row, draft row by row"
    said = [line for line in statistics_lines(found.stats, drafting=True) if "Passes" in line]
    assert len(said) == 1
    assert said[0].startswith("Passes: target row by row, draft row by row (mlx-spec doctor")
    plain = batch_generate(fast, None, [[1, 2, 3]], draft_model=fast, **options)
    assert plain.stats.passes == ""
    folder = write_architecture(tmp_path / "model", "gpt_bigcode")
    assert main(["doctor", "--model", str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "row by row: its code takes one position for all rows" in shown


def test_a_mask_that_hides_nothing_is_refused_in_words() -> None:
    """mlx-lm's phi3small adds booleans to its scores; it runs, and is wrong however it is cut."""

    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model("llama")
            self.layers = self.inner.layers

        def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
            logits: mx.array = self.inner(tokens, cache=cache)
            return logits

        def attend(self, scores: mx.array, mask: mx.array) -> mx.array:
            scores += mask
            return scores

    support = examine(Adding())
    assert support.verdict == "refused"
    assert support.reason.startswith("Adding of this 'Adding' model adds its attention mask")
