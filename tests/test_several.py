"""Lists of caches in one layer are taken apart: each member is kept as its own kind is."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import CacheList, KVCache

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layout import plan
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.several import SeveralCaches, leaves
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.preemption import run_with_a_preemption
from tests.scenario import mlx_lm_greedy
from tests.test_layout import Fake
from tests.toys.every_second import EverySecond, EverySecondSlots


class _InTwo:
    """A model whose layers take the first member of their list, and write the second as well."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.layers, self.model_type = inner, inner.layers, "in_two"

    def named_modules(self) -> Any:
        return self.inner.named_modules()

    def parameters(self) -> Any:
        return self.inner.parameters()

    def make_cache(self) -> list[Any]:
        return [CacheList(KVCache(), CacheList(KVCache())) for _ in self.layers]

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        for own in cache:
            fake = mx.broadcast_to(
                tokens[:, None, :, None], (*tokens.shape[:1], 1, *tokens.shape[1:], 1)
            )
            own[1][0].update_and_fetch(fake, fake)
        logits: mx.array = self.inner(tokens, cache=[own[0] for own in cache])
        return logits


@cache
def in_two(layers: int = 2) -> Any:
    return _InTwo(make_model("llama", num_hidden_layers=layers))


def test_lists_are_taken_apart_and_keep_their_shape() -> None:
    made = plan(Fake(KVCache(), CacheList(EverySecond(), CacheList(KVCache(), KVCache()))))
    assert [type(layer) for cache in made for layer in leaves(cache)] == [
        DenseKVCache,
        EverySecondSlots,
        DenseKVCache,
        DenseKVCache,
    ]
    pool = KVCachePool(made, 2)
    outer = pool.caches[1]
    assert isinstance(outer, SeveralCaches)
    inner = outer[1]
    assert isinstance(inner, SeveralCaches)
    assert (len(outer), len(inner)) == (2, 2)
    assert [outer[0], inner[0], inner[1]] == pool.layers[1:]


def test_a_view_has_lists_of_its_own() -> None:
    pool = KVCachePool(plan(Fake(CacheList(KVCache(), KVCache()), KVCache())), 2)
    view = pool.view()
    assert isinstance(view.caches[0], SeveralCaches)
    assert [*leaves(view.caches[0]), view.caches[1]] == view.layers
    assert not set(map(id, view.layers)) & set(map(id, pool.layers))


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_rows_over_lists_equal_the_model_alone(debug: bool) -> None:
    decoder = SpeculativeDecoder(
        in_two(),
        drafter=ModelDrafter(ModelRunner(in_two(), 3)),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(
            batch_size=3, prefill_step_size=16, block_size=8, prefix_cache_bytes=2**20
        ),
        debug=debug,
    )
    for row in run_with_a_preemption(decoder):
        assert row.tokens == mlx_lm_greedy(in_two().inner, tuple(row.prompt), len(row.tokens))


def test_the_bytes_of_members_add_up() -> None:
    lone = ModelRunner(make_model("llama"), 2).cost.per_token
    beside = 2 * 2 * 1 * 1 * 4  # layers, keys and values, one head of one number
    assert ModelRunner(in_two(), 2).cost.per_token == lone + beside
