"""Packed passes against rectangles: the same logits, hidden states and caches, of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache.packed_rows import PackedQueries, PackedRows
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.config import PLAIN_CACHES, CacheOptions
from mlx_spec.model.hidden import HiddenLayers
from mlx_spec.model.kernel_binding import OPERATIONS, bind_operations
from mlx_spec.model.packing import packs
from mlx_spec.model.runner import ModelRunner, Rows
from tests.architectures import build
from tests.models import make_model

pytestmark = pytest.mark.usefixtures("uncompiled")

Patch = pytest.MonkeyPatch
ROWS = 3
# Tokens of each row of every pass, how many of them stay, and all tokens of the packed pass.
PASSES = [
    ((3, 1, 2), (2, 1, 2), 6),
    ((1, 1, 4), (1, 1, 1), 8),
    ((1, 1, 1), (1, 1, 1), 5),
    ((4, 2, 1), (4, 1, 1), 7),
    ((2, 2, 2), (1, 2, 2), 9),
]
PROMPTS = (13, 1, 6)  # the first comes to the end of a window of 16


class Texts:
    """Rows that are read pass by pass, by one runner; packed or not."""

    def __init__(self, model: Any, options: CacheOptions = PLAIN_CACHES) -> None:
        self.runner = ModelRunner(model, ROWS, options)
        self.lengths = list(PROMPTS)
        pool = self.runner.pool
        pool.acquire(ROWS)
        pool.reserve(64)
        for row, length in enumerate(PROMPTS):
            tokens = mx.array([[(5 * row + 7 * i) % 60 for i in range(length)]])
            rows = Rows(tokens, mx.zeros(1, mx.int32), length, row, uniform=True)
            self.runner.feed(rows, 64, wait=True)

    def read(
        self, counts: tuple[int, ...], kept: tuple[int, ...], packed: int | None
    ) -> list[mx.array]:
        """Logits [n, V] of each row's own tokens, and hidden states where they are tapped."""
        width = max(counts)
        tokens = mx.array(
            [[(3 * r + n + self.lengths[r]) % 60 for n in range(width)] for r in (0, 1, 2)]
        )
        packing = None if packed is None else TokenPacking.of(counts, packed)
        logits = self.runner.forward(
            Rows(
                tokens,
                mx.array(self.lengths, mx.int32),
                max(self.lengths) + width,
                counts=None if min(counts) == width else mx.array(counts, mx.int32),
                tentative=True,
                packing=packing,
            )
        )
        if packing is not None:
            assert logits.shape[:2] == (packed, 1)
            logits = packing.spread(logits[:, 0])
        self.runner.commit(mx.array(kept, mx.int32))
        self.lengths = [length + n for length, n in zip(self.lengths, kept, strict=True)]
        hidden = self.runner.hidden
        found = [logits] if hidden is None else [logits, hidden]
        return [array[row, :count] for array in found for row, count in enumerate(counts)]

    def held(self) -> list[mx.array]:
        """What the caches hold of the rows."""
        saved = [self.runner.pool.save(row, 0, own) for row, own in enumerate(self.lengths)]
        return [array for state in saved for array in state.flat]


def gap(ones: list[mx.array], others: list[mx.array]) -> float:
    """The largest difference, relative to the largest number."""

    def apart(one: mx.array, other: mx.array) -> float:
        one, other = one.astype(mx.float32), other.astype(mx.float32)
        largest = mx.maximum(mx.abs(other).max(), 1e-30)
        return float((mx.abs(one - other).max() / largest).item())

    return max(apart(a, b) for a, b in zip(ones, others, strict=True) if a.size)


def furthest(model: Any, options: CacheOptions = PLAIN_CACHES, tapped: bool = False) -> float:
    """How far packed passes are from rectangles, in whatever comes out and stays."""
    texts = [Texts(model, options) for _ in range(2)]
    if tapped:
        for own in texts:
            own.runner.tap(HiddenLayers(layers=(0,)))
    gaps = []
    for counts, kept, packed in PASSES:
        ones, others = (
            own.read(counts, kept, packed if one else None) for one, own in enumerate(texts)
        )
        gaps += [gap(ones, others), gap(texts[0].held(), texts[1].held())]
    return max(gaps)


MODELS: dict[str, tuple[Callable[[], Any], CacheOptions]] = {
    "dense": (make_model, PLAIN_CACHES),
    "windows": (lambda: build("gemma3"), PLAIN_CACHES),
    "shared": (lambda: build("gemma3n"), PLAIN_CACHES),
    "lent": (lambda: build("gemma4_text"), PLAIN_CACHES),
    "sinks": (lambda: build("gpt_oss"), PLAIN_CACHES),
    "latent": (lambda: build("deepseek_v3"), PLAIN_CACHES),
    "short": (make_model, CacheOptions(max_kv_size=16)),
    "quantized": (lambda: build("llama", wide=True), CacheOptions(kv_bits=8, kv_group_size=32)),
    "late": (
        lambda: build("llama", wide=True),
        CacheOptions(kv_bits=8, kv_group_size=32, quantized_kv_start=9),
    ),
}


@pytest.mark.parametrize(
    ("counts", "runs"),
    [
        ([7] + [1] * 15, [(0, 1, 7), (1, 16, 1)]),
        ([1] * 5 + [4, 4, 4] + [1] * 8, [(0, 5, 1), (5, 8, 4), (8, 16, 1)]),
        ([3, 3, 3], [(0, 3, 3)]),
        ([2, 1, 2, 1], [(0, 4, 2)]),  # a call more costs as much as three holes
    ],
)
def test_queries_are_asked_in_as_few_calls_as_pay(
    counts: list[int], runs: list[tuple[int, int, int]]
) -> None:
    """Every token's answer is found where its own run has put it."""
    packing = TokenPacking.of(counts, sum(counts) + 2)
    assert [(run.first, run.end, run.width) for run in packing.runs] == runs
    asked = mx.concatenate([run.index.flatten() for run in packing.runs])
    tokens = sum(counts)
    assert asked[packing.order].tolist() == [*range(tokens), 0, 0]
    assert packing.index.flatten()[packing.places].tolist() == [*range(tokens), 0, 0]
    own = [row for row, count in enumerate(counts) for _ in range(count)]
    assert packing.rows == (*own, 0, 0)


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_pass_says_and_leaves_what_its_rectangle_does(name: str) -> None:
    make, options = MODELS[name]
    model = make()
    assert ModelRunner(model, ROWS, options).packs
    assert furthest(model, options) < 1e-5


def test_hidden_states_stand_where_those_of_a_rectangle_do() -> None:
    assert furthest(make_model(), tapped=True) < 1e-5


def test_kernels_and_packing_live_side_by_side() -> None:
    """Bound before, bound over it and taken out again: each is found by the other."""
    references = {name: one.reference for name, one in OPERATIONS.items() if name != "sample"}
    model = make_model("qwen3")
    with bind_operations(model, references) as binding:
        assert binding.bound["attention"] == 2
        assert ModelRunner(model, ROWS).packs
        assert furthest(model) < 1e-5
    assert ModelRunner(model, ROWS).packs
    texts = Texts(model)
    assert texts.read((2, 1, 1), (1, 1, 1), 4)
    with bind_operations(model, references):
        texts.read((2, 1, 1), (1, 1, 1), 4)
    assert texts.read((2, 1, 1), (1, 1, 1), 4)  # the classes that it was bound to are gone
    assert furthest(model) < 1e-5


@pytest.mark.parametrize("name", ["mamba", "qwen3_next", "gemma2", "llama4"])
def test_what_cannot_be_packed_says_so_and_stays_as_it_is(name: str) -> None:
    """States, one position for all rows, and attention that is none of mlx-lm's function."""
    model = build(name)
    runner = ModelRunner(model, ROWS)
    before = [type(module) for _, module in model.named_modules()]
    assert not runner.packs
    assert [type(module) for _, module in model.named_modules()] == before


def test_a_verdict_is_asked_once(monkeypatch: Patch) -> None:
    model, seen = make_model(), list[Any]()
    right = PackedRows.__init__

    def noted(self: Any, *args: Any) -> None:
        seen.append(self)
        right(self, *args)

    monkeypatch.setattr(PackedRows, "__init__", noted)
    assert ModelRunner(model, 2).packs
    asked = len(seen)
    assert ModelRunner(model, 5).packs
    assert len(seen) == asked > 0
    runner = ModelRunner(model, 5)
    changed = replace(runner.support, vocabulary=runner.support.vocabulary)
    assert packs(model, PLAIN_CACHES, changed)  # another verdict on the model: asked again
    assert len(seen) == 2 * asked


def test_a_mask_of_another_width_is_refused() -> None:
    """A layer that asks for no mask for one token would show it what is behind it."""
    model = make_model()
    own = type(model.model.layers[0].self_attn)

    class NoMask(own):  # type: ignore[misc,valid-type]
        def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
            out: mx.array = super().__call__(x, None if x.shape[1] == 1 else mask, cache)
            return out

    for layer in model.model.layers:
        layer.self_attn.__class__ = NoMask
    assert not ModelRunner(model, ROWS).packs


# --- planted bugs --------------------------------------------------------------------------------


def offset_of_another_row(patch: Patch) -> None:
    """Each token stands where its neighbour does."""
    right = PackedRows.__init__

    def planted(self: Any, layer: Any, packing: Any, offset: mx.array) -> None:
        right(self, layer, packing, mx.roll(offset, 1))

    patch.setattr(PackedRows, "__init__", planted)


def queries_regrouped_by_the_wrong_index(patch: Patch) -> None:
    """Answers go to the tokens in the order of the packed pass."""
    right = PackedQueries.attend

    def planted(self: Any, attention: Any, queries: mx.array, *read: Any, **more: Any) -> mx.array:
        out = right(self, attention, queries, *read, **more)
        return mx.concatenate([out[1:], out[:1]])

    patch.setattr(PackedQueries, "attend", planted)


def padding_written_into_the_cache(patch: Patch) -> None:
    """The last place of every row takes the pass's last token, which is nobody's."""
    right = TokenPacking.of

    def planted(counts: Any, tokens: int) -> TokenPacking:
        own = right(counts, tokens)
        last = mx.full((len(counts), 1), tokens - 1, mx.int32)
        return replace(own, index=mx.concatenate([own.index[:, :-1], last], axis=1))

    patch.setattr(TokenPacking, "of", planted)


def mask_of_the_packed_order(patch: Patch) -> None:
    """Rows see as far as the token with their own number does in the packed pass."""
    right = PackedRows.make_mask

    def planted(self: Any, *args: Any, **more: Any) -> Any:
        mask = right(self, *args, **more)
        if not isinstance(mask, mx.array):
            return mask
        return mask[self._packing.places[: len(mask)] // self._layer.span.width]

    patch.setattr(PackedRows, "make_mask", planted)


def keys_written_in_the_packed_order(patch: Patch) -> None:
    """The rectangle is filled row by row with the tokens as they come."""
    patch.setattr(
        TokenPacking,
        "spread",
        lambda self, tokens: mx.take(
            tokens, mx.arange(self.index.size).reshape(self.index.shape) % len(self.rows), axis=0
        ),
    )


def answers_in_the_order_of_runs(patch: Patch) -> None:
    """As if every row of a run had as many tokens as the run is wide."""
    right = TokenPacking.of

    def planted(counts: Any, tokens: int) -> TokenPacking:
        own = right(counts, tokens)
        return replace(own, order=mx.arange(tokens) % sum(run.index.size for run in own.runs))

    patch.setattr(TokenPacking, "of", planted)


BUGS = [
    answers_in_the_order_of_runs,
    offset_of_another_row,
    queries_regrouped_by_the_wrong_index,
    padding_written_into_the_cache,
    mask_of_the_packed_order,
    keys_written_in_the_packed_order,
]


@pytest.mark.parametrize("plant", BUGS)
def test_a_planted_bug_shows(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    model = make_model()
    assert furthest(model) < 1e-5
    plant(monkeypatch)
    assert furthest(model) > 1e-3
