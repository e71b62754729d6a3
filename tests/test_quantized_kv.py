"""Keys and values in few bits: rows of a batch equal mlx-lm alone over its quantized caches."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.generate import generate_step

from mlx_spec.cache.layout import own_caches
from mlx_spec.config import BatchingConfig, CacheOptions
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner
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
    model = wide(family)
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


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_rows_in_few_bits_equal_the_model_alone(family: str, bits: int, group: int) -> None:
    assert wrong_rows(CacheOptions(kv_bits=bits, kv_group_size=group), family) == 0
