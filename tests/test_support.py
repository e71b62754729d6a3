"""The verdict on a model before it runs; over every architecture: ``test_architectures``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama

from mlx_spec import SamplingParams, batch_generate
from mlx_spec.cache.cost import RowCost
from mlx_spec.cli.statistics import statistics_lines
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.passes.form import PassForm
from mlx_spec.model.support import examine
from tests.architectures import build
from tests.models import make_model
from tests.scenario import mlx_lm_greedy
from tests.test_known_support import Flat
from tests.waiting import PATIENCE

TEXTS = [[(11 * row + 7 * i) % 64 for i in range(10)] for row in range(5)]


class AsksMoreOfItsCache(llama.Model):  # type: ignore[misc]
    """Its own caches can do that."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> Any:
        cache[0].trim(0)
        return super().__call__(inputs, cache)


def test_a_foreign_error_becomes_ours_before_anything_runs() -> None:
    model = make_model("llama")
    model.__class__ = AsksMoreOfItsCache
    words = (
        "mlx-lm's code of this 'llama' model cannot run rows at different positions: it asks its "
        "caches for something else .*has no attribute 'trim'"
    )
    with pytest.raises(UnsupportedModel, match=words):
        batch_generate(model, None, [[1, 2, 3], [4, 5]])
    with pytest.raises(UnsupportedModel, match=words):
        SpeculativeDecoder(make_model("llama"), draft_model=model)


def test_positions_that_are_told_from_the_number_of_keys_are_one_rows() -> None:
    """It runs in a batch, and attends from wrong places without a word."""
    model = build("afm7")
    assert examine(model).form == PassForm(rows_apart=True)
    prompts = [text[: 3 + 2 * row] for row, text in enumerate(TEXTS[:3])]
    found = batch_generate(
        model, None, prompts, draft_model=model, sampling=SamplingParams(max_tokens=12)
    )
    for prompt, result in zip(prompts, found.results, strict=True):
        assert result.token_ids == mlx_lm_greedy(model, tuple(prompt), 12)


class Branching(nn.Module):
    """States, and a branch that no attention's module has: nothing can be given rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build("lfm2")
        self.layers, self.make_cache = self.inner.layers, self.inner.make_cache

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        L = tokens.shape[1]  # noqa: N806
        logits: mx.array = self.inner(tokens, cache=cache)
        if L == 1:
            return logits * 1.0000001
        return logits


def test_near_ties_are_said_in_the_statistics() -> None:
    options = {"sampling": SamplingParams(max_tokens=4)}
    apart = batch_generate(Branching(), None, [[1, 2, 3], [4, 5]], **options)
    alike = batch_generate(make_model("llama"), None, [[1, 2, 3]], **options)
    assert (apart.stats.exactness, alike.stats.exactness) == ("near-ties", "exact")
    assert statistics_lines(apart.stats, drafting=True)[-1].startswith("Exactness: near-ties")
    assert "Exactness" not in " ".join(statistics_lines(alike.stats, drafting=True))
    assert "computes one new token in another way" in examine(Branching()).reason


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_grouped_query_heads_get_masks_with_an_axis_for_groups(rows: int) -> None:
    """With as many rows as key heads a mask without it fits by chance, and attends wrongly."""
    model = build("gemma2")
    assert examine(model).grouped_masks
    assert not examine(make_model("llama")).grouped_masks
    prompts = [text[: 3 + 2 * row] for row, text in enumerate(TEXTS[:rows])]
    found = batch_generate(
        model, None, prompts, draft_model=model, sampling=SamplingParams(max_tokens=12)
    )
    for prompt, result in zip(prompts, found.results, strict=True):
        assert result.token_ids == mlx_lm_greedy(model, tuple(prompt), 12)


def test_nothing_is_computed_for_a_verdict() -> None:
    """The weights are those of another thread, which cannot be computed in this one."""

    def unread() -> Any:
        model = make_model("llama")
        lazy = [(name, value + 0) for name, value in tree_flatten(model.parameters())]
        model.update(tree_unflatten(lazy))
        return model

    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(unread).result(PATIENCE)
    assert examine(model).verdict == "exact"
    with pytest.raises(RuntimeError, match="Stream"):
        mx.eval(model.parameters())


def test_odd_logits_are_refused() -> None:
    assert "logits of shape (2, 64) for 2 rows of 3 tokens" in examine(Flat()).reason


def test_the_passes_show_sizes() -> None:
    support = examine(make_model("llama", vocab_size=70))
    # 2 layers of keys and values, 2 heads of 8 floats each.
    assert (support.vocabulary, support.cost) == (70, RowCost(per_token=2 * 2 * 2 * 8 * 4))
