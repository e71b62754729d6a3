"""``max_kv_size``: full attention looks back to so many tokens, the first four among them."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from mlx_spec.cache.layout import own_caches
from mlx_spec.config import BatchingConfig, CacheOptions
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.errors import InvalidRequest, UnsupportedModel
from mlx_spec.model.runner import ModelRunner
from tests.architectures import build
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.preemption import run_with_a_preemption
from tests.scenario import noisy_draft, target


@cache
def expected(family: str, size: int, prompt: tuple[int, ...], count: int) -> list[int]:
    """What mlx-lm says that reads a text token by token: wider passes would look back further than
    it does when it decodes, the first four tokens aside."""
    model = target(family)
    caches = own_caches(model, CacheOptions(max_kv_size=size))
    steps = generate_step(
        mx.array(prompt), model, max_tokens=count, prompt_cache=caches, prefill_step_size=1
    )
    return [int(token) for token, _ in steps][:count]


@pytest.mark.parametrize(("family", "size"), [("llama", 8), ("qwen3", 19), ("gemma", 64)])
def test_rows_of_limited_size_equal_the_model_alone(family: str, size: int) -> None:
    options = CacheOptions(max_kv_size=size)
    decoder = SpeculativeDecoder(
        target(family),
        drafter=ModelDrafter(ModelRunner(noisy_draft(family), 3, options)),
        policy=RaggedPolicy(),
        batching=BatchingConfig(batch_size=3, block_size=8, prefill_step_size=16, cache=options),
    )
    made = run_with_a_preemption(decoder, reusing=False)
    assert [row.tokens for row in made] == [
        expected(family, size, tuple(row.prompt), len(row.tokens)) for row in made
    ]


def test_the_size_changes_the_text() -> None:
    """Else the above would hold of caches that forget nothing."""
    prompt = tuple(range(40))
    assert expected("llama", 8, prompt, 12) != expected("llama", 200, prompt, 12)


def test_its_memory_stops_growing() -> None:
    small = ModelRunner(make_model(), 2, CacheOptions(max_kv_size=64)).cost
    assert (
        small.nbytes(10_000) == small.nbytes(1_000) < ModelRunner(make_model(), 2).cost.nbytes(500)
    )


def test_what_cannot_be_limited_is_refused_in_words() -> None:
    with pytest.raises(InvalidRequest, match="max_kv_size=4, expected an integer >= 5"):
        CacheOptions(max_kv_size=4)
    with pytest.raises(InvalidRequest, match="kv_bits=8 and max_kv_size=64"):
        CacheOptions(kv_bits=8, max_kv_size=64)
    with pytest.raises(UnsupportedModel, match="max_kv_size=64 asked, but no layer"):
        ModelRunner(build("mamba"), 2, CacheOptions(max_kv_size=64))
