"""Keys and values in few bits: rows of a batch equal mlx-lm alone over its quantized caches."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.generate import generate_step

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layout import own_caches
from mlx_spec.config import BatchingConfig, CacheOptions, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.errors import InvariantError, UnsupportedModel
from mlx_spec.model.rows import Rows
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.architectures import build
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.preemption import run_with_a_preemption


@cache
def wide(family: str = "llama", noise: float = 0.0) -> Any:
    """A model with heads of 64 numbers; with noise a draft that is right now and then."""
    model = make_model(family, head_dim=64)
    mx.random.seed(99)
    disturbed = [
        (name, value + noise * mx.random.normal(value.shape) * mx.abs(value).mean())
        for name, value in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(disturbed))
    mx.eval(model.parameters())
    return model


@cache
def expected(family: str, options: CacheOptions, prompt: tuple[int, ...], count: int) -> list[int]:
    """What mlx-lm says over its own caches, quantized from the first token on."""
    return alone(wide(family), options, prompt, count)


def alone(model: Any, options: CacheOptions, prompt: tuple[int, ...], count: int) -> list[int]:
    """The same of any model."""
    caches = own_caches(model, options)
    steps = generate_step(mx.array(prompt), model, max_tokens=count, prompt_cache=caches)
    return [int(token) for token, _ in steps][:count]


def make_decoder(options: CacheOptions, family: str = "llama", **more: Any) -> SpeculativeDecoder:
    batching = BatchingConfig(
        batch_size=3, block_size=8, prefix_cache_bytes=2**20, prefill_step_size=16, cache=options
    )
    draft = ModelRunner(wide(family, 0.15), 3, options)
    return SpeculativeDecoder(
        wide(family), drafter=ModelDrafter(draft), policy=RaggedPolicy(), batching=batching, **more
    )


def wrong_rows(options: CacheOptions, family: str = "llama", **more: Any) -> int:
    made = run_with_a_preemption(make_decoder(options, family, **more))
    return sum(
        row.tokens != expected(family, options, tuple(row.prompt), len(row.tokens)) for row in made
    )


@pytest.mark.parametrize(
    ("family", "bits", "group"),
    [("llama", 4, 32), ("llama", 4, 64), ("llama", 8, 32), ("llama", 8, 64), ("gemma", 4, 64)],
)
def test_rows_in_few_bits_equal_the_model_alone(family: str, bits: int, group: int) -> None:
    assert wrong_rows(CacheOptions(kv_bits=bits, kv_group_size=group), family) == 0


def test_windows_beside_quantized_caches_stay_as_they_are() -> None:
    model, options = build("gemma3_text", head_dim=32), CacheOptions(8, 32)
    assert {type(own).__name__ for own in own_caches(model, options)} == {
        "QuantizedKVCache",
        "RotatingKVCache",
    }
    decoder = SpeculativeDecoder(
        model,
        drafter=ModelDrafter(ModelRunner(model, 3, options)),
        policy=RaggedPolicy(),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16, cache=options),
    )
    for row in run_with_a_preemption(decoder, reusing=False):
        assert row.tokens == alone(model, options, tuple(row.prompt), len(row.tokens))


def test_debug_mode_compares_packed_rows_too() -> None:
    assert wrong_rows(CacheOptions(4, 32), debug=True) == 0
    assert wrong_late_rows(CacheOptions(4, 32, quantized_kv_start=16), debug=True) == 0


@pytest.mark.parametrize("place", range(6))
def test_debug_mode_sees_spoilt_numbers_scales_and_biases(place: int) -> None:
    """Numbers may fall to either side of a half, and no further."""
    decoder = make_decoder(CacheOptions(8, 64), debug=True)
    decoder.add([Sequence([1 + i, 2, 3, 4], SamplingParams(max_tokens=20)) for i in range(3)])
    decoder.step()
    layer = decoder.runner.pool.layers[1]
    arrays = list(layer.arrays)
    spoilt = mx.array(0x0F0F0F0F, mx.uint32) if place % 3 == 0 else arrays[place][2, 0, 1, 0] * 2
    arrays[place] = arrays[place].at[2, :, 1].add(spoilt)
    layer.arrays = arrays
    with pytest.raises(InvariantError, match=r"of layer 1, slot 2"):
        decoder.step()


def test_few_bits_change_the_text() -> None:
    """Else all of the above would hold of caches that are not quantized at all."""
    plain = run_with_a_preemption(make_decoder(CacheOptions()))
    for options in (CacheOptions(4, 32), CacheOptions(4, 32, quantized_kv_start=16)):
        packed = run_with_a_preemption(make_decoder(options))
        pairs = zip(plain, packed, strict=True)
        assert sum(one.tokens != other.tokens for one, other in pairs) > 2


@pytest.mark.parametrize("start", [0, 16])
def test_sampled_rows_with_drafts_equal_plain_decoding_alone(start: int) -> None:
    options = CacheOptions(4, 32, quantized_kv_start=start)
    prompts = [[(5 * i + 3 * n) % 64 for n in range(3 + 4 * i)] for i in range(5)]
    sampled = [SamplingParams(max_tokens=12, temperature=0.8, top_k=20, seed=i) for i in range(5)]

    def run(decoder: SpeculativeDecoder, rows: list[Sequence]) -> list[list[int]]:
        waiting = list(rows)
        while waiting or decoder.busy:
            if waiting and decoder.free_rows:
                decoder.add([waiting.pop(0)])
            decoder.step()
        return [row.tokens for row in rows]

    def made() -> list[Sequence]:
        return [Sequence(prompt, how) for prompt, how in zip(prompts, sampled, strict=True)]

    batching = BatchingConfig(batch_size=1, cache=options)
    plain = SpeculativeDecoder(wide(), batching=batching)
    drafted = made()
    assert run(make_decoder(options), drafted) == run(plain, made())
    assert sum(row.accepted for row in drafted) > 0


@cache
def expected_late(options: CacheOptions, prompt: tuple[int, ...], count: int) -> list[int]:
    """What mlx-lm says that begins to quantize late, and looks at the length after each token."""
    steps = generate_step(
        mx.array(prompt),
        wide(),
        max_tokens=count,
        kv_bits=options.kv_bits,
        kv_group_size=options.kv_group_size,
        quantized_kv_start=options.quantized_kv_start,
        prefill_step_size=1,
    )
    return [int(token) for token, _ in steps][:count]


def wrong_late_rows(options: CacheOptions, **more: Any) -> int:
    made = run_with_a_preemption(make_decoder(options, **more))
    return sum(
        row.tokens != expected_late(options, tuple(row.prompt), len(row.tokens)) for row in made
    )


@pytest.mark.parametrize(("bits", "start"), [(4, 1), (4, 7), (8, 16), (4, 30), (4, 5000)])
def test_rows_that_are_quantized_late_equal_the_model_alone(bits: int, start: int) -> None:
    """Of rows on both sides of the start, and passes across it, each token reads its own kind."""
    assert wrong_late_rows(CacheOptions(bits, 32, start)) == 0


def test_a_short_text_takes_no_more_memory_than_without() -> None:
    """Packed keys and values are made when a row gets so long, not before."""
    late = CacheOptions(4, 32, quantized_kv_start=40)
    runner, plain = ModelRunner(wide(), 2, late), ModelRunner(wide(), 2)
    for one in (runner, plain):
        one.pool.acquire(2)
        one.pool.reserve(39)
        one.forward(Rows(mx.zeros((2, 9), mx.int32), mx.array([0, 30], mx.int32), 39))
    entry = 2 * 2 * 64 * 4 * 2  # two layers, keys and values, 2 heads of 64 float32
    assert plain.pool.nbytes == 2 * 256 * entry
    assert runner.pool.nbytes == 2 * 41 * entry
    runner.forward(Rows(mx.zeros((2, 2), mx.int32), mx.array([9, 39], mx.int32), 41, since=9))
    packed = 2 * 2 * 2 * (64 // 2 + 2 * 2 * 4)  # 4 bits, and two numbers for each 32
    assert runner.pool.nbytes == 2 * (41 * entry + 256 * packed)
    assert runner.cost == RowCost(per_token=packed, capped=((41, entry),))
    assert ModelRunner(wide(), 2, CacheOptions(4, 32)).cost == RowCost(per_token=packed)


def test_statistics_say_what_each_kind_takes() -> None:
    model, options = build("gemma3_text", head_dim=32), CacheOptions(8, 32)
    batching = BatchingConfig(batch_size=2, cache=options)
    with BatchedMLXGenerator(model, None, batching=batching) as generator:
        stream = generator.submit([1, 2, 3], max_tokens=200)
        next(iter(stream))
        kv = generator.stats().kv
        assert set(kv.bytes_by_kind) == {"8 bits", "windows"}
        assert sum(kv.bytes_by_kind.values()) == kv.bytes_held > 0
        assert "8 bits 0.0 MB" in dict(generator.stats().summary)["K/V by kind"]
        stream.cancel()


REFUSED = [
    ("llama", {"head_dim": 48}, CacheOptions(8), "48 numbers a head .* groups of 64 .kv_group_"),
    ("mamba", {}, CacheOptions(8), "kv_bits=8 asked, but no layer .* its caches: ArraysCache"),
    ("gemma2", {"head_dim": 32}, CacheOptions(8, 32), "cannot read keys and values in 8 bits"),
    (
        "deepseek_v3",
        {"kv_lora_rank": 32, "qk_rope_head_dim": 32},
        CacheOptions(8, 32),
        "in 8 bits .kv",
    ),
]


@pytest.mark.parametrize(("name", "sizes", "options", "words"), REFUSED)
def test_what_cannot_be_quantized_is_refused_in_words(
    name: str, sizes: dict[str, Any], options: CacheOptions, words: str
) -> None:
    for start in (0, 10):
        with pytest.raises(UnsupportedModel, match=words) as raised:
            ModelRunner(build(name, **sizes), 2, replace(options, quantized_kv_start=start))
        assert "TypeError" not in str(raised.value)
        assert "AttributeError" not in str(raised.value)


def test_a_draft_that_cannot_is_named() -> None:
    batching = BatchingConfig(cache=CacheOptions(8, 64))
    with pytest.raises(UnsupportedModel, match=r"draft model: .* of 8 numbers a head"):
        SpeculativeDecoder(wide(), draft_model=make_model("llama"), batching=batching)
