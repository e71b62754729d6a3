"""Binding kernels into models: same tokens, all undone again, and nothing bound by guesswork."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.rope_utils import YarnRoPE, initialize_rope

import metal_sim
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.span import Span
from mlx_spec.cli.main import main
from mlx_spec.config import BatchingConfig, CacheOptions
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import InvalidRequest
from mlx_spec.model import fused_layers
from mlx_spec.model.kernel_binding import (
    OPERATIONS,
    SlotAttention,
    bind_operations,
    unbind_kernels,
)
from mlx_spec.model.kernel_choice import bind_kernels
from mlx_spec.model.loader import load
from mlx_spec.model.runner import ModelRunner, Rows
from tests.architectures import build
from tests.kernel_support import error, normal
from tests.models import make_model
from tests.scenario import make_jobs, mlx_lm_greedy, noisy_draft, run_jobs, target, wrong_rows

REFERENCES = {name: operation.reference for name, operation in OPERATIONS.items()}
BOUND: dict[str, dict[str, int]] = {
    "llama": {"rms_norm": 5, "add_rms_norm": 2, "rope": 2, "attention": 2},
    "qwen3": {"rms_norm": 9, "add_rms_norm": 2, "rope": 2, "norm_rope": 2, "attention": 2},
    "qwen3_moe": {"rms_norm": 9, "add_rms_norm": 2, "rope": 2, "norm_rope": 2, "attention": 2},
    "gemma": {"rope": 2, "attention": 2},
    "olmo2": {"rms_norm": 9, "rope": 2, "attention": 2},
    "starcoder2": {"rope": 2, "attention": 2},
}
for operations in BOUND.values():
    operations["sample"] = 1  # the model itself


def decode(family: str, count: int = 7, *, sampled: bool = False) -> list[int]:
    """Rows of a speculating batch of three that differ from what the target alone says."""
    jobs = make_jobs(family, sampled, count)
    decoder = SpeculativeDecoder(
        target(family),
        draft_model=noisy_draft(family),
        batching=BatchingConfig(batch_size=3, prefill_step_size=32),
        policy=FixedDraftLength(3),
    )
    return wrong_rows(jobs, run_jobs(decoder, jobs))


@pytest.mark.parametrize("family", BOUND)
def test_what_is_bound_and_that_it_is_undone(family: str) -> None:
    model = make_model(family)
    classes = [type(module) for _, module in model.named_modules()]
    weights = tree_flatten(model.parameters())
    tokens = mx.array([[3, 1, 4, 1, 5]])
    before = model(tokens)
    with bind_operations(model, REFERENCES) as binding:
        assert binding.bound == BOUND[family]
        assert [name for name, _ in tree_flatten(model.parameters())] == [n for n, _ in weights]
        assert error(model(tokens), before) <= 1e-5
    assert binding.bound == {}
    assert [type(module) for _, module in model.named_modules()] == classes
    after = tree_flatten(model.parameters())
    assert all(one is other for (_, one), (_, other) in zip(weights, after, strict=True))
    assert mx.array_equal(model(tokens), before)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "olmo2"])
def test_a_speculating_batch_says_the_same_with_references_bound(family: str) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return REFERENCES[name](*arguments, **options)

        return call

    operations = {name: counted(name) for name in REFERENCES}
    with (
        bind_operations(target(family), operations),
        bind_operations(noisy_draft(family), operations),
    ):
        assert decode(family) == []
    # Where norms and rotations are one operation, the rotations are not called by themselves.
    apart = {"rope"} if "norm_rope" in BOUND[family] else set()
    assert set(calls) == set(BOUND[family]) - apart


@pytest.mark.skipif(metal_sim.unavailable() is not None, reason=metal_sim.unavailable() or "")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_speculating_batch_says_the_same_with_kernels_bound(family: str) -> None:
    sampled = family == "llama"
    make_jobs(family, sampled, 4)  # what is expected comes from the model as it is
    with (
        metal_sim.installed() as simulator,
        bind_kernels(target(family), "metal") as binding,
        bind_kernels(noisy_draft(family), "metal"),
    ):
        assert binding.bound == BOUND[family]
        assert decode(family, 4, sampled=sampled) == []
        ran = Counter(launch.kernel for launch in simulator.launches)
    fused = {"norm_rope"} if family == "qwen3" else {"rope"}
    fused |= {"sample_race", "sample_cut"} if sampled else set()
    assert {"attention", "add_rms_norm", "rms_norm", *fused} <= set(ran)


def test_by_default_nothing_is_bound_where_there_is_no_metal() -> None:
    model = make_model("llama")
    assert bind_kernels(model).bound == {}
    assert bind_kernels(model, "reference").bound == {}


def test_wrong_choices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with pytest.raises(InvalidRequest, match="kernels='fast', expected auto, metal or reference"):
        bind_kernels(make_model("llama"), "fast")
    with pytest.raises(InvalidRequest, match=r"\[bind_kernels\] kernels='metal', but there is no"):
        bind_kernels(make_model("llama"), "metal")


def test_loading_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_spec.model.kernel_choice.decide", lambda model: "verdicts")
    kernels = {"rms_norm": REFERENCES["rms_norm"]}
    monkeypatch.setattr("mlx_spec.model.kernel_choice.chosen", {"verdicts": kernels}.get)
    assert type(load("demo")[0].model.norm) is not nn.RMSNorm
    assert type(load("demo", kernels="reference")[0].model.norm) is nn.RMSNorm


@pytest.mark.parametrize("command", [("generate",), ("batch", "in.jsonl", "out.jsonl")])
@pytest.mark.parametrize("choice", ["metal", "fast"])
def test_the_flag_is_checked_before_a_model_is_loaded(
    command: tuple[str, ...],
    choice: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr("mlx_lm.load", None)
    (tmp_path / "in.jsonl").write_text('{"prompt": "def f"}\n')
    assert main([*command, "--kernels", choice]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error:" in one]
    assert f"kernels={choice!r}" in line


def test_the_flag_reaches_the_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(
        "mlx_spec.model.loader.bind_kernels", lambda model, kernels: chosen.append(kernels)
    )
    assert main(["generate", "-p", "def f", "-m", "2", "--kernels", "reference"]) == 0
    assert chosen == ["reference", "reference"]


def test_binding_twice_binds_once() -> None:
    model = make_model("llama")
    bind_operations(model, REFERENCES)
    bind_operations(model, {"rms_norm": REFERENCES["rms_norm"]})
    assert type(model.layers[0]) is llama.TransformerBlock
    assert type(model.model.norm).__mro__[2] is nn.RMSNorm
    unbind_kernels(model)
    assert type(model.model.norm) is nn.RMSNorm


def test_mlx_lms_own_loop_runs_on_a_bound_model() -> None:
    model = make_model("qwen3")
    prompt = (3, 1, 4, 1, 5, 9, 2, 6)
    expected = mlx_lm_greedy(model, prompt, 12)
    with bind_operations(model, REFERENCES):
        assert mlx_lm_greedy(model, prompt, 12) == expected


class ScaledBlock(llama.TransformerBlock):  # type: ignore[misc]
    """As after an update of mlx-lm: almost the code that can be fused."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        r = self.self_attn(self.input_layernorm(x), mask, cache)
        h = x + 0.5 * r
        r = self.mlp(self.post_attention_layernorm(h))
        out: mx.array = h + r
        return out


def test_code_that_reads_otherwise_is_not_fused() -> None:
    model = make_model("llama")
    for layer in model.layers:
        layer.__class__ = ScaledBlock
    tokens = mx.array([[3, 1, 4]])
    before = model(tokens)
    with bind_operations(model, REFERENCES) as binding:
        assert "add_rms_norm" not in binding.bound
        assert error(model(tokens), before) <= 1e-5


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        {"type": "proportional", "partial_rotary_factor": 0.5},
    ],
    ids=str,
)
def test_scaled_rotations_turn_alike(scaling: dict[str, Any] | None) -> None:
    module = initialize_rope(16, 10000.0, False, scaling, 512)
    x = normal(3, 2, 4, 16)
    expected = [module(x), module(x, offset=mx.array([5, 0, 40])), module(x, offset=7)]
    with bind_operations(module, REFERENCES) as binding:
        assert binding.bound == {"rope": 1, "sample": 1}
        ours = [module(x), module(x, offset=mx.array([5, 0, 40])), module(x, offset=7)]
    for one, other in zip(ours, expected, strict=True):
        assert error(one, other) <= 4e-5


def test_rotations_that_do_more_stay_mlx_lms() -> None:
    assert fused_layers.rope_options(YarnRoPE(16, scaling_factor=4.0)) is None
    longrope = {
        "type": "longrope",
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    }
    module = initialize_rope(16, 10000.0, False, longrope, 512)
    assert bind_operations(module, REFERENCES).bound == {"sample": 1}


def slots(width: int, *, uniform: bool = False) -> DenseKVCache:
    cache = DenseKVCache(2, 30)
    cache.bind(Span(0, 2, mx.array([4, 4 if uniform else 9]), width, 9 + width, uniform))
    return cache


@pytest.mark.parametrize(
    ("width", "uniform", "window_size"),
    [(1, False, None), (3, False, None), (3, False, 5), (1, True, None), (3, True, None)],
)
def test_masks_of_slots_become_lengths(width: int, uniform: bool, window_size: int | None) -> None:
    cache = slots(width, uniform=uniform)
    if uniform:
        cache.bind(Span(0, 2, mx.array([9, 9]), width, 9 + width, True))
    mask = cache.make_mask(width, window_size=window_size)
    q, k = normal(2, 4, width, 8), normal(2, 2, 9 + width, 8)
    v = normal(2, 2, 9 + width, 8, seed=1)
    seen: list[Any] = []

    def attention(*arguments: Any, **options: Any) -> mx.array:
        seen.append(options)
        out: mx.array = REFERENCES["attention"](*arguments, **options)
        return out

    ours = SlotAttention(attention)(q, k, v, cache, 0.3, mask)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
    assert error(ours, theirs) <= 1e-5
    assert [options["window"] for options in seen] == [window_size]


@pytest.mark.parametrize(
    ("cache", "width", "mask"),
    [
        (None, 3, "causal"),
        (slots(3), 3, None),  # every query would see every key
        (slots(3), 3, "causal"),  # rows of different lengths
        (slots(3), 3, mx.ones((2, 1, 3, 12), mx.bool_)),  # not one that the slots made
        (slots(17, uniform=True), 17, "causal"),  # prefill
    ],
)
def test_all_other_calls_stay_mlx_lms(cache: Any, width: int, mask: Any) -> None:
    q, k = normal(2, 4, width, 8), normal(2, 2, 9 + width, 8)

    def attention(*_: Any, **__: Any) -> mx.array:
        raise AssertionError("not by length")

    ours = SlotAttention(attention)(q, k, k, cache, 0.3, mask)
    theirs = mx.fast.scaled_dot_product_attention(q, k, k, scale=0.3, mask=mask)
    assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gemma3_text", CacheOptions()),  # a ring beside a dense cache
        ("gemma3n", CacheOptions()),  # and layers that read both
        ("gpt_oss", CacheOptions()),  # with sinks
        ("llama", CacheOptions(kv_bits=8, kv_group_size=32)),
    ],
)
def test_only_dense_caches_are_read_by_length(name: str, options: CacheOptions) -> None:
    """Stops positions of a ring, or packed numbers, from being taken for a text's keys."""
    model = build(name) if name != "llama" else make_model("llama", head_dim=32)
    caches: set[type] = set()

    class Listening(SlotAttention):
        def __call__(self, *arguments: Any, **more: Any) -> mx.array:
            caches.add(type(more["cache"] if "cache" in more else arguments[3]))
            out: mx.array = super().__call__(*arguments, **more)
            return out

    def logits() -> mx.array:
        runner = ModelRunner(model, 2, options)
        runner.pool.acquire(2)
        runner.pool.reserve(70)
        text = mx.arange(120).reshape(2, 60) % 64
        runner.feed(Rows(text, mx.zeros(2, mx.int32), 60, uniform=True), 64, wait=True)
        return runner.forward(Rows(text[:, :3], mx.array([60, 57]), 63))

    expected = logits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_spec.model.kernel_binding.SlotAttention", Listening)
        with bind_operations(model, {"attention": REFERENCES["attention"]}):
            assert error(logits(), expected) <= 1e-5
    assert (DenseKVCache in caches) == (options.kv_bits is None)
