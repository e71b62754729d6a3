"""Models with recurrent states verify several tokens in one pass, and go on from the right state.

What is compared is mlx-lm's own greedy loop: five requests in three slots, drafts of another length
for every row and step, joins, leaves and a preemption (``tests/test_state.py``).
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_spec.cache.layout import own_caches
from mlx_spec.model.known_support import support_of
from mlx_spec.model.recurrence import binding, mixer, replay
from mlx_spec.model.recurrence.binding import bind_recurrence, unbind_recurrence
from mlx_spec.model.recurrence.replay import Way
from mlx_spec.model.recurrence.verdict import recurrence_of
from mlx_spec.model.runner import ModelRunner, Rows
from tests.architectures import build
from tests.test_state import make_decoder, model_of, run, wrong

# Whose mixers honour masks, so that what is kept is read at once.
MASKED = (
    *("qwen3_5", "qwen3_next", "granitemoehybrid", "mamba2", "falcon_h1", "lfm2", "kimi_linear"),
    *("plamo2", "bailing_hybrid"),
)
ONE_BY_ONE = ("jamba", "rwkv7", "bailing_moe_linear", "baichuan_m1")
WAYS = {
    **dict.fromkeys(MASKED, Way.MASKED),
    **dict.fromkeys(ONE_BY_ONE, Way.ONE_BY_ONE),
    "nemotron_h": Way.TOLD,
}
# Most are run, and held to be exact, by tests/test_architectures.py too.
RUN = ("qwen3_5", "qwen3_next", "granitemoehybrid", "mamba2", "falcon_h1", "lfm2", "nemotron_h")
ACCEPTANCE = [
    *((family, 0.6) for family in (*RUN, "jamba")),
    *((family, a) for family in ("qwen3_next", "nemotron_h") for a in (0.0, 0.9, 1.0)),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts passes, and the calls of models that they took."""
    counted = {"passes": 0, "calls": 0}
    forward = ModelRunner.forward

    def pass_counted(runner: ModelRunner, rows: Any) -> mx.array:
        counted["passes"] += 1
        model, cls = runner.model, type(runner.model)

        def counting(*args: Any, **kwargs: Any) -> mx.array:
            counted["calls"] += 1
            logits: mx.array = cls.__call__(*args, **kwargs)
            return logits

        model.__class__ = type(cls.__name__, (cls,), {"__call__": counting})
        try:
            return forward(runner, rows)
        finally:
            model.__class__ = cls

    monkeypatch.setattr(ModelRunner, "forward", pass_counted)
    return counted


@pytest.mark.parametrize(("family", "acceptance"), ACCEPTANCE)
def test_one_call_verifies_and_rows_say_what_they_say_alone(
    family: str, acceptance: float, calls: dict[str, int]
) -> None:
    made = run(make_decoder(family, acceptance), family)
    assert wrong(family, made) == []
    assert (sum(row.accepted for row in made) > 0) == (acceptance > 0)
    assert calls["calls"] == calls["passes"] > 0


@pytest.mark.parametrize(("family", "way"), WAYS.items())
def test_the_way_of_running_a_mixer_again_is_found(family: str, way: Way) -> None:
    support = support_of(model_of(family))
    assert {probe.way for probe in support.recurrence.probes.values()} == {way}
    assert support.recurrence.pads == (way is Way.MASKED)
    assert not support.form.tokens_apart


def all_of(kept: replay.Kept) -> replay.Kept:
    width = mx.full(kept.counts.shape, kept.tokens.shape[1])
    return replay.Kept(width, mx.ones_like(kept.tokens))


def spoil_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recurrence goes on from the state after the pass, not from the one before."""
    again = replay.run_again

    def late(call: Any, notes: Any, before: Any, kept: Any, way: Way) -> Any:
        after = again(call, notes, before, all_of(kept), way)
        return again(call, notes, after, kept, way)

    monkeypatch.setattr(binding, "run_again", late)


def spoil_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row keeps as much as its neighbour does."""
    again = replay.run_again

    def shifted(call: Any, notes: Any, before: Any, kept: Any, way: Way) -> Any:
        rolled = replay.Kept(mx.roll(kept.counts, 1), mx.roll(kept.tokens, 1, axis=0))
        return again(call, notes, before, rolled, way)

    monkeypatch.setattr(binding, "run_again", shifted)


def spoil_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass is run again over what the mixer noted of an earlier one of the same shape."""
    give, kept = mixer.Notes.give, {}

    def stale(notes: Any, index: int | None = None) -> Any:
        key = (id(notes._call.module), notes._call.shape)
        if index in (None, 0):
            kept[key] = (kept.get(key, (notes, notes))[1], notes)
        return give(kept[key][0], index)

    monkeypatch.setattr(mixer.Notes, "give", stale)


@pytest.mark.parametrize("spoil", [spoil_state, spoil_row, spoil_notes])
@pytest.mark.parametrize("family", ["qwen3_next", "mamba"])
def test_a_wrong_replay_shows(family: str, spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above would miss, they would not hold."""
    decoder = make_decoder(family, 0.6)
    spoil(monkeypatch)
    assert wrong(family, run(decoder, family)) != []


@pytest.mark.parametrize("family", ["qwen3_next", "mamba2", "falcon_h1", "mamba"])
def test_mlx_lm_finds_its_models_as_before(family: str) -> None:
    """Bound mixers give the very same over mlx-lm's own caches; unbound they are what they were."""
    model, tokens = build(family), mx.array([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]])
    own = [type(module) for _, module in model.named_modules()]

    def logits() -> mx.array:
        cache = own_caches(model)
        return mx.concatenate([model(tokens, cache=cache), model(tokens[:, :1], cache=cache)], 1)

    before = logits()
    bind_recurrence(model, recurrence_of(model).probes)
    assert [type(module) for _, module in model.named_modules()] != own
    assert mx.array_equal(logits(), before)
    unbind_recurrence(model)
    assert [type(module) for _, module in model.named_modules()] == own


def states_after(model: Any, texts: list[list[int]], kept: list[int] | None) -> list[mx.array]:
    """States after each text's first 9 tokens and ``kept`` of the others, verified in one pass.

    None: each token of the others in a pass of its own.
    """
    runner = ModelRunner(model, len(texts))
    runner.pool.acquire(len(texts))
    runner.pool.reserve(16)
    tokens, at = mx.array(texts), mx.full((len(texts),), 9, mx.int32)
    runner.feed(Rows(tokens[:, :9], at * 0, 9, uniform=True), 64, wait=True)
    if kept is not None:
        width = len(texts[0]) - 9
        runner.forward(Rows(tokens[:, 9:], at, 9 + width, tentative=True, since=9))
        runner.commit(mx.array(kept))
    else:
        for place in range(9, len(texts[0])):
            runner.forward(Rows(tokens[:, place : place + 1], at, place + 1, since=9))
            at = at + 1
    folded = [layer for layer in runner.pool.layers if not layer.sliceable]
    return [states for layer in folded for states in layer.arrays]


def of_kind(family: str, kind: str) -> Any:
    """A model in 16 bits, or of quantized weights beside."""
    model = build(family)
    if kind == "4 bits":
        nn.quantize(model, 32, 4, class_predicate=_can_be_quantized)
    if kind != "float32":
        model.set_dtype(mx.bfloat16)
    return model


def _can_be_quantized(_: str, module: Any) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


# All tokens at once are summed in another order than one after the other (Mamba 2).
FAR = {"float32": 1e-5, "bfloat16": 0.04, "4 bits": 0.04}


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, "float32") for family in (*RUN, "kimi_linear", "plamo2", "bailing_hybrid")),
        *((family, kind) for family in ("mamba2", "lfm2", "jamba") for kind in FAR),
    ],
)
def test_states_are_those_of_decoding_alone(family: str, kind: str) -> None:
    """Every row goes on from the state that its kept tokens lead to, one after the other."""
    model = of_kind(family, kind)
    texts, kept = [[(7 * n + 5 * row) % 64 for n in range(13)] for row in range(4)], [4, 1, 2, 3]
    found = states_after(model, texts, kept)
    furthest = 0.0
    for row, count in enumerate(kept):
        alone = states_after(model, [texts[row][: 9 + count]], None)
        for ours, lone in zip(found, alone, strict=True):
            off = mx.abs(ours[row].astype(mx.float32) - lone[0].astype(mx.float32)).max()
            furthest = max(furthest, float(off / mx.abs(lone).max()))
    assert furthest < FAR[kind]


@pytest.mark.parametrize("kind", ["bfloat16", "4 bits"])
@pytest.mark.parametrize("family", ["qwen3_next", "mamba2", "lfm2"])
def test_masks_are_seen_to_be_honoured_in_16_bits_and_4(family: str, kind: str) -> None:
    found = recurrence_of(of_kind(family, kind))
    assert (found.replays, found.pads) == (True, True)
    assert {probe.way for probe in found.probes.values()} == {Way.MASKED}


def test_nothing_is_noted_of_prompts_nor_of_one_token() -> None:
    """Stops a prompt's projections of all layers from being held until the next pass."""
    runner = ModelRunner(model_of("mamba2"), 2)
    runner.pool.acquire(2)
    runner.pool.reserve(32)
    zero = mx.zeros(2, mx.int32)
    for width, tentative, noted in ((8, False, 0), (1, True, 0), (4, True, 1)):
        tokens = mx.zeros((2, width), mx.int32)
        runner.forward(Rows(tokens, zero, width, uniform=True, tentative=tentative))
        states: Any = runner.pool.layers[0]
        assert len(states._pass.replays) == noted


def test_weights_of_zeros_tell_nothing_of_masks() -> None:
    """Stops a mixer that ignores masks from passing for one that honours them."""
    model = build("mamba2")
    model.backbone.layers[0].mixer.in_proj.weight = mx.zeros_like(
        model.backbone.layers[0].mixer.in_proj.weight
    )
    probe = recurrence_of(model).probes["backbone.layers.0.mixer"]
    assert (probe.way, probe.pads) == (Way.ONE_BY_ONE, False)
