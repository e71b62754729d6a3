"""Models with sliding windows, ten windows long: mlx-lm's own tokens, and bugs that break them.

Windows of 16 tokens beside full attention, with sinks, with layers that share keys and values, and
in chunks: five requests in three slots with ragged drafts, joins, leaves, shared beginnings and a
preemption (``tests/architecture_runs.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import RotatingKVCache

from mlx_spec.cache import layout
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.ring import RingKVCache
from mlx_spec.cache.ring_places import Ring
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.errors import InvariantError
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.architecture_runs import Plan, run
from tests.architectures import build
from tests.fakes import RaggedPolicy
from tests.scenario import mlx_lm_greedy
from tests.tiny_sizes import VOCABULARY, WINDOW

pytestmark = pytest.mark.usefixtures("uncompiled")

Patch = pytest.MonkeyPatch

NAMES = [
    "cohere2",
    "exaone4",
    "gemma3_text",
    "gemma3n",
    "gemma4_text",
    "gpt_oss",
    "llama4",
    "olmo3",
]
# The preempted row, the first one, is past its window.
LONG = Plan((75, 3, 9, 40, 1), (24, 10 * WINDOW, 20, 24, 20), acceptance=0.85, reusing=True)
SHORT = Plan((75, 83, 1, 40, 9), (16, 16, 40, 9, 20), reusing=True)
FEW = Plan((20, 3, 1, 9, 2), (12, 9, 12, 9, 5))


@contextmanager
def slack(entries: int) -> Iterator[None]:
    """Rings with so much of it: with little, prompts and drafts are too wide for it."""
    layout.register(RotatingKVCache, lambda own: RingKVCache(own.max_size, own.keep, entries))
    try:
        yield
    finally:
        layout.register(RotatingKVCache, lambda own: RingKVCache(own.max_size, own.keep))


@pytest.mark.parametrize("name", NAMES)
def test_ten_windows_are_what_mlx_lm_says(name: str) -> None:
    outcome = run(name, LONG)
    assert outcome.wrong == []
    assert outcome.near == 0
    assert outcome.reused > 0
    assert 0.6 < sum(outcome.accepted) / sum(outcome.drafted) < 0.95


@pytest.mark.parametrize(
    ("name", "entries"),
    [("gemma3_text", 4), ("gemma3_text", 0), ("gemma3_text", -1), ("gemma3n", 0)],
)
def test_whatever_the_slack(name: str, entries: int) -> None:
    """With -1 all that a pass writes over is still seen by one of its tokens."""
    with slack(entries):
        assert run(name, SHORT).wrong == []


def decode(debug: bool = False, save: bool = True) -> list[Sequence]:
    """Requests whose guesses are a draft model's that has a ring of its own, and is as good."""
    model = build("gemma3_text")
    decoder = SpeculativeDecoder(
        model,
        drafter=ModelDrafter(ModelRunner(model, 3)),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(batch_size=3, prefill_step_size=64, block_size=8),
        debug=debug,
    )
    prompts = [[(7 * i + 3 * n) % VOCABULARY for n in range(60 - 20 * i)] for i in range(3)]
    made = [Sequence(p, SamplingParams(max_tokens=30), index=i) for i, p in enumerate(prompts)]
    decoder.add(made)
    for step in range(200):
        if step == 4:
            decoder.suspend(made[0], save=save)
        if step == 6:
            decoder.add([made[0]])
        if not decoder.busy:
            break
        decoder.step()
    for row in made:
        assert row.tokens == mlx_lm_greedy(model, tuple(row.prompt), 30)
    return made


@pytest.mark.parametrize("save", [True, False], ids=["kept", "computed again"])
def test_a_draft_model_with_a_ring_is_always_right_about_itself(save: bool) -> None:
    made = decode(save=save)
    assert sum(row.accepted for row in made) == sum(row.drafted for row in made) > 50


def test_debug_mode_compares_rings_with_lone_ones() -> None:
    decode(debug=True)


def test_debug_mode_sees_a_spoilt_ring(monkeypatch: Patch) -> None:
    right = Ring.places
    monkeypatch.setattr(Ring, "places", lambda ring, at: right(ring, mx.where(at == 60, 0, at)))
    with pytest.raises(InvariantError, match="differs from a lone cache"):
        decode(debug=True)


def one_token_less_is_seen(patch: Patch) -> None:
    """A window that is one short."""
    right = Ring.seen

    def wrong(self: Ring, keys: mx.array, queries: mx.array, window: int | None) -> mx.array:
        return right(self, keys, queries, window) & (keys != queries + 1 - self.reach)

    patch.setattr(Ring, "seen", wrong)


def one_entry_short(patch: Patch) -> None:
    """What a pass writes over is one token more than nobody sees."""
    patch.setattr(Ring, "circle", property(lambda ring: ring.reach - 2))
    patch.setattr(RingKVCache, "_is_wide", RingKVCache._wraps)


def written_in_place_though_too_wide(patch: Patch) -> None:
    """The last tokens of a pass are written over what its first ones see."""
    patch.setattr(
        RingKVCache,
        "_is_wide",
        property(lambda ring: ring._wraps and ring.span.width > ring.ring.slack + 4),
    )


def padding_is_kept(patch: Patch) -> None:
    """Rows that a wide pass pads lose what they still see."""
    right = RingKVCache._gather

    def wrong(self: RingKVCache, wide: Any, kept: mx.array) -> None:
        right(self, wide, mx.full(kept.shape, self.span.width, mx.int32))

    patch.setattr(RingKVCache, "_gather", wrong)


def rejected_guesses_stay(patch: Patch) -> None:
    """A wide pass is not taken back."""
    patch.setattr(RingKVCache, "commit", lambda ring, kept: None)


def reloaded_unrotated(patch: Patch) -> None:
    """A saved ring comes back as it was saved, from the first entry on."""
    right = RingKVCache.load

    def wrong(self: RingKVCache, slot: int, begin: int, states: Seq[RowState]) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Ring, "places", lambda ring, positions: mx.arange(positions.size))
            right(self, slot, begin, states)

    patch.setattr(RingKVCache, "load", wrong)


def saved_from_the_next_slot(patch: Patch) -> None:
    """A row's window is its neighbour's."""
    right = RingKVCache.save

    def wrong(self: RingKVCache, slot: int, begin: int, end: int) -> RowState:
        return right(self, (slot + 1) % self.slots, begin, end)

    patch.setattr(RingKVCache, "save", wrong)


def the_rows_before_are_masked(patch: Patch) -> None:
    """Each row's entries are taken for those of another length."""
    right = Ring.held
    patch.setattr(Ring, "held", lambda ring, ends: right(ring, mx.roll(ends, 1)))


PLANTED = [
    one_token_less_is_seen,
    one_entry_short,
    written_in_place_though_too_wide,
    padding_is_kept,
    rejected_guesses_stay,
    reloaded_unrotated,
    saved_from_the_next_slot,
    the_rows_before_are_masked,
]


@pytest.mark.parametrize("plant", PLANTED, ids=[plant.__name__ for plant in PLANTED])
def test_planted_bugs_are_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    with slack(0):
        assert run("gemma3_text", SHORT).wrong != []


@pytest.mark.parametrize("kind", [RingKVCache, DenseKVCache])
def test_a_layer_that_reads_another_rows_keys_is_noticed(kind: Any, monkeypatch: Patch) -> None:
    """Where layers share keys and values; the layer that owns them reads its own."""
    right, update = kind.keys_and_values, kind.update_and_fetch

    def own(self: Any, keys: mx.array, values: mx.array) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(kind, "keys_and_values", right)
            return update(self, keys, values)

    def wrong(self: Any) -> Any:
        return tuple(mx.roll(part, 1, axis=0) for part in right(self))

    monkeypatch.setattr(kind, "update_and_fetch", own)
    monkeypatch.setattr(kind, "keys_and_values", wrong)
    assert run("gemma3n", FEW).wrong != []
