"""Models that compute one new token in another way than several verify a draft as they decode."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_spec.cache.token_rows import TokenRows
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.cuts import Cuts
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.as_rows import bind_as_rows, unbind_as_rows
from mlx_spec.model.passes.form import PassForm
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.model.support import examine
from mlx_spec.sequence import Sequence
from tests.architectures import build
from tests.fakes import RaggedPolicy
from tests.preemption import run_with_a_preemption
from tests.scenario import mlx_lm_greedy

# Latent attention; with a sparse index of its own; two of them a layer; scaled by the position.
FAMILIES = ("deepseek_v3", "deepseek_v32", "longcat_flash", "mistral4")
AS_ROWS = PassForm(tokens_as_rows=True)
STARTS, WIDTH = (6, 2, 5), 4


@cache
def model(name: str) -> Any:
    return build(name)


def fed(name: str, *, unbound: bool = False) -> ModelRunner:
    """Three rows that hold as many tokens as they start at; on request not given rows."""
    runner = ModelRunner(build(name) if unbound else model(name), 3)
    if unbound:
        unbind_as_rows(runner.model)
    runner.pool.acquire(3)
    runner.pool.reserve(16)
    for row, start in enumerate(STARTS):
        tokens = mx.array([[(11 * row + 7 * i) % 64 for i in range(start)]])
        rows = Rows(tokens, mx.zeros(1, mx.int32), start, row, uniform=True)
        runner.feed(rows, 64, wait=True)
    return runner


def new_tokens() -> mx.array:
    return mx.array([[(5 * row + 3 * i + i * i) % 64 for i in range(WIDTH)] for row in range(3)])


def verified(name: str, *, unbound: bool = False) -> mx.array:
    rows = Rows(new_tokens(), mx.array(STARTS, mx.int32), max(STARTS) + WIDTH, tentative=True)
    return fed(name, unbound=unbound).forward(rows)


def decoded(name: str) -> mx.array:
    """The same, token by token."""
    runner, logits = fed(name), []
    for i in range(WIDTH):
        starts = mx.array([start + i for start in STARTS], mx.int32)
        rows = Rows(new_tokens()[:, i : i + 1], starts, max(STARTS) + i + 1, tentative=True)
        logits.append(runner.forward(rows))
    return mx.concatenate(logits, axis=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_draft_is_verified_to_the_last_bit_as_it_is_decoded(name: str) -> None:
    support = ModelRunner(model(name), 3).support
    assert (support.verdict, support.form) == ("exact", AS_ROWS)
    assert mx.array_equal(verified(name), decoded(name))


def test_at_once_the_bits_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why there is such a form."""
    expected = decoded("deepseek_v3")

    def whole(form: PassForm, *args: Any, **options: Any) -> Any:
        return make_pass(PassForm(), *args, **options)

    monkeypatch.setattr("mlx_spec.model.runner.make_pass", whole)
    found = verified("deepseek_v3")
    assert not mx.array_equal(found, expected)
    assert mx.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["deepseek_v3", "longcat_flash"])
def test_rows_equal_the_model_alone(name: str) -> None:
    decoder = SpeculativeDecoder(
        model(name),
        drafter=ModelDrafter(ModelRunner(model(name), 3)),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(
            batch_size=3, prefill_step_size=16, block_size=8, prefix_cache_bytes=2**20
        ),
        debug=name == "deepseek_v3",
    )
    for row in run_with_a_preemption(decoder):
        assert row.tokens == mlx_lm_greedy(model(name), tuple(row.prompt), len(row.tokens))


def test_a_mask_of_another_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = TokenRows.make_mask

    def rolled(self: TokenRows, *args: Any, **options: Any) -> mx.array:
        return mx.roll(right(self, *args, **options), 1, axis=0)

    monkeypatch.setattr(TokenRows, "make_mask", rolled)
    assert not mx.allclose(verified("deepseek_v3"), decoded("deepseek_v3"), atol=1e-2)


@pytest.mark.parametrize("name", ["kimi_linear", "bailing_moe_v3"])
def test_beside_states_the_attention_alone_is_given_rows(name: str) -> None:
    """The states take the tokens in their order, and mlx-lm's own caches are served as ever."""
    lone = build(name)
    expected = lone(new_tokens(), cache=make_prompt_cache(lone))
    support = ModelRunner(model(name), 3).support
    assert (support.verdict, support.form) == ("exact", AS_ROWS)
    assert mx.array_equal(verified(name), decoded(name))
    assert mx.array_equal(model(name)(new_tokens(), cache=make_prompt_cache(model(name))), expected)
    assert not mx.array_equal(verified(name, unbound=True), decoded(name))


def test_a_verdict_leaves_a_model_as_it_was() -> None:
    lone = build("kimi_linear")
    classes = [type(module) for _, module in lone.named_modules()]
    assert examine(lone).form == AS_ROWS
    assert [type(module) for _, module in lone.named_modules()] == classes
    runner = ModelRunner(lone, 2)
    assert examine(lone) == runner.support  # once more, over modules that are bound
    assert len(bind_as_rows(lone)) == 0
    unbind_as_rows(lone)
    assert len(bind_as_rows(lone)) > 0


def plain(name: str, rows: int = 1) -> SpeculativeDecoder:
    batching = BatchingConfig(
        batch_size=rows, prefill_step_size=64, prefill_interleave=16, prefix_cache_bytes=2**22
    )
    return SpeculativeDecoder(model(name), batching=batching)


def entries(decoder: SpeculativeDecoder, count: int) -> list[mx.array]:
    """What layers by position hold of the first slot's first tokens."""
    pool = decoder.runner.pool
    parts = zip(pool.layers, pool.save(0, 0, count).parts, strict=True)
    return [array for layer, part in parts if not layer.folds for array in part.flat]


@pytest.mark.parametrize(
    ("name", "cuts"), [("deepseek_v3", True), ("kimi_linear", True), ("deepseek_v3", False)]
)
def test_what_was_said_is_read_again_as_it_was_said(
    name: str, cuts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row whose caches were given up has them again to the last bit; and without the cuts not."""
    first, second = plain(name), plain(name)
    row = Sequence([(5 * n) % 64 for n in range(21)], SamplingParams(max_tokens=50))
    first.add([row])
    while len(row.tokens) < 36:
        first.step()
    said = entries(first, 54)
    mx.eval(said)
    first.suspend(row, save=False)
    first.step()
    if not cuts:
        monkeypatch.setattr(Cuts, "decoded", lambda self, sequence, seen: False)
        monkeypatch.setattr(Cuts, "read", lambda self, sequence: sequence.length - 1)
    second.add([row])
    while not second.running:
        second.step()
    again = entries(second, 54)
    assert all(mx.array_equal(a, b) for a, b in zip(again, said, strict=True)) is cuts
    assert all(mx.allclose(a, b, atol=1e-4) for a, b in zip(again, said, strict=True))


@pytest.mark.parametrize("beside", [0, 30])
def test_a_prompt_does_not_depend_on_who_is_read_beside_it(beside: int) -> None:
    """Its last piece is one token, alone or in a wide pass."""
    name = "deepseek_v3"
    text, other = [(5 * n) % 64 for n in range(34)], [(3 * n) % 64 for n in range(34 + beside)]
    alone, together = plain(name), plain(name, 2)
    alone.add([Sequence(text, SamplingParams(max_tokens=4))])
    together.add([Sequence(each, SamplingParams(max_tokens=4)) for each in (text, other)])
    for decoder in (alone, together):
        while not decoder.running:
            decoder.step()
    held = zip(entries(alone, 33), entries(together, 33), strict=True)
    assert all(mx.array_equal(a, b) for a, b in held)


def test_of_a_chat_only_what_was_read_as_a_prompt_is_kept() -> None:
    """Whoever goes on with it reads as a prompt what the model said."""
    decoder = plain("deepseek_v3")
    row = Sequence([(5 * n) % 64 for n in range(20)], SamplingParams(max_tokens=40))
    decoder.add([row])
    while decoder.busy:
        decoder.step()
    more = Sequence([*row.prompt, *row.tokens, 1, 2], SamplingParams(max_tokens=2))
    decoder.add([more])
    while decoder.busy:
        decoder.step()
    assert 0 < more.reused < 20
