"""Bytes that the kernels move, counted by the simulator: the reason why they exist.

Each array is read or written once, keys and values once for all queries that share them, and only
up to the rows' lengths; and the figures that ``scripts/kernel_bytes.py`` prints are these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import metal_sim
from metal_kernels import (
    AttentionConfig,
    SampleRows,
    add_rms_norm,
    attention,
    norm_rope,
    rms_norm,
    rope,
    sample,
)
from scripts.kernel_bytes import (
    LLAMA,
    QWEN,
    SPLIT,
    Comparison,
    Model,
    Step,
    add_norm,
    norm_alone,
    rope_alone,
    table,
)
from scripts.kernel_bytes import attention as attention_bytes
from scripts.kernel_bytes import norm_rope as norm_rope_bytes
from scripts.kernel_bytes import sample as sample_bytes
from tests.kernel_support import Attend, normal

pytestmark = pytest.mark.skipif(
    metal_sim.unavailable() is not None, reason=metal_sim.unavailable() or ""
)
SMALL = Model(
    "small",
    layers=1,
    hidden=520,
    q_heads=8,
    kv_heads=2,
    head_dim=64,
    head_norms=True,
    vocabulary=5000,
)


@pytest.fixture
def simulator() -> Iterator[metal_sim.Simulator]:
    with metal_sim.installed() as running:
        yield running


def once(traffic: metal_sim.Traffic, nbytes: int) -> bool:
    """Whether exactly these bytes were read, or written, and none of them twice."""
    read = (traffic.loaded, traffic.unique_loaded) == (nbytes, nbytes)
    written = (traffic.stored, traffic.unique_stored) == (nbytes, nbytes)
    return read != written and traffic.loaded * traffic.stored == 0


@pytest.mark.parametrize("view", ["plain", "pool"])
@pytest.mark.parametrize(("tokens", "shared"), [(1, 1), (5, 4), (8, 8), (16, 4)])
def test_attention_reads_keys_and_values_once(
    simulator: metal_sim.Simulator, tokens: int, shared: int, view: str
) -> None:
    case = Attend(
        (180, 17, 96, 0),
        q_heads=2 * shared,
        tokens=tokens,
        dtype=mx.float16,
        head_dim=80,
        view=view,
    )
    (q, *rest), options = case.inputs()
    out = attention.kernel(q, *rest, **options)
    (launch,) = simulator.launches
    keys = sum(case.lengths) * case.kv_heads * case.head_dim * 2
    assert once(launch.inputs["k"], keys)
    assert once(launch.inputs["v"], keys)
    assert launch.inputs["q"].unique_loaded == q.nbytes
    assert once(launch.outputs["out"], out.nbytes)
    assert launch.unique_bytes == pytest.approx(2 * keys + q.nbytes + out.nbytes, rel=0.02)


def test_a_window_is_all_that_is_read(simulator: metal_sim.Simulator) -> None:
    case = Attend((180, 17, 96, 0), tokens=4, options={"window": 20})
    arguments, options = case.inputs()
    attention.kernel(*arguments, **options)
    # The first of four queries sees 20 keys, each further one a new one; short rows all they have.
    seen = 23 + 17 + 23
    (launch,) = simulator.launches
    assert once(launch.inputs["k"], seen * case.kv_heads * case.head_dim * 4)


def test_splitting_reads_keys_once_and_adds_the_partial_results(
    simulator: metal_sim.Simulator,
) -> None:
    case = Attend((180, 75), tokens=2, q_heads=4)
    config = AttentionConfig(threadgroups=16, split_keys=30)
    arguments, options = case.inputs()
    attention.configured(config).kernel(*arguments, **options)
    first, second = simulator.launches
    assert once(first.inputs["k"], sum(case.lengths) * case.kv_heads * case.head_dim * 4)
    splits, queries = 4, 2 * 2 * 4
    assert once(first.outputs["partial"], queries * splits * case.head_dim * 4)
    assert once(second.inputs["partial"], queries * splits * case.head_dim * 4)


def test_norms_touch_each_element_once(simulator: metal_sim.Simulator) -> None:
    x, residual, weight = normal(3, 2, 1000), normal(3, 2, 1000, seed=5), normal(1000)
    add_rms_norm.kernel(x, residual, weight)
    rms_norm.kernel(x, weight)
    fused, alone = simulator.launches
    for traffic in (*map(fused.inputs.get, ("x", "residual")), *fused.outputs.values()):
        assert traffic is not None
        assert once(traffic, x.nbytes)
    assert once(alone.inputs["x"], x.nbytes)
    assert once(alone.outputs["normed"], x.nbytes)


def test_norm_rope_touches_each_element_once(simulator: metal_sim.Simulator) -> None:
    queries, keys = normal(3, 2, 4, 64).transpose(0, 2, 1, 3), normal(3, 2, 2, 64)
    offsets = mx.array([1, 2, 3])
    norm_rope.kernel(queries, keys, normal(64), normal(64), offsets, dims=48)
    (launch,) = simulator.launches
    assert once(launch.inputs["queries"], queries.nbytes)
    assert once(launch.inputs["keys"], keys.nbytes)
    assert once(launch.outputs["rotated_queries"], queries.nbytes)
    assert once(launch.outputs["rotated_keys"], keys.nbytes)


def assert_counted(simulator: metal_sim.Simulator, comparison: Comparison) -> None:
    """The script's figures are the simulator's, shapes and strides of the launches left out."""
    moved = sum(
        traffic.unique_loaded + traffic.unique_stored
        for launch in simulator.launches
        for buffers in (launch.inputs, launch.outputs)
        for name, traffic in buffers.items()
        if not name.endswith(("_shape", "_strides"))
    )
    assert moved == pytest.approx(comparison.ours.moved, rel=0.002)
    assert len(simulator.launches) == comparison.ours.launches


@pytest.mark.parametrize(("batch", "cached", "tokens"), [(16, 40, 3), (3, 600, 4)])
def test_the_script_counts_attention_right(
    simulator: metal_sim.Simulator, batch: int, cached: int, tokens: int
) -> None:
    step = Step(SMALL, batch, tokens, cached)
    case = Attend(
        (cached,) * batch,
        SMALL.q_heads,
        SMALL.kv_heads,
        tokens,
        cached,
        SMALL.head_dim,
        mx.float16,
    )
    arguments, options = case.inputs()
    config = AttentionConfig(threadgroups=16)
    attention.configured(config).kernel(*arguments, **options)
    comparison = attention_bytes(step, config)
    assert_counted(simulator, comparison)
    assert comparison.ours.launches == (1 if batch == 16 else 2)
    estimate = attention.configured(config).memory_estimate(
        batch=batch,
        q_heads=SMALL.q_heads,
        kv_heads=SMALL.kv_heads,
        queries=tokens,
        capacity=cached,
        head_dim=SMALL.head_dim,
    )
    assert estimate.threadgroup == simulator.launches[0].threadgroup_bytes
    made = (launch.outputs.values() for launch in simulator.launches)
    assert estimate.flash == sum(traffic.stored for buffers in made for traffic in buffers)
    loaded = sum(simulator.launches[0].inputs[name].loaded for name in "kv")
    assert loaded == comparison.ours.loaded


def test_the_script_counts_norms_and_rotations_right(simulator: metal_sim.Simulator) -> None:
    step = Step(SMALL, batch=4, tokens=5, cached=9)
    half: Any = mx.float16
    x = normal(4, 5, SMALL.hidden, dtype=half)
    add_rms_norm.kernel(x, x, normal(SMALL.hidden, dtype=half))
    assert_counted(simulator, add_norm(step))
    simulator.launches.clear()
    rms_norm.kernel(x, normal(SMALL.hidden, dtype=half))
    assert_counted(simulator, norm_alone(step))
    simulator.launches.clear()
    weight = normal(64, dtype=half)
    norm_rope.kernel(
        normal(4, 8, 5, 64, dtype=half),
        normal(4, 2, 5, 64, dtype=half),
        weight,
        weight,
        mx.array([0, 1, 2, 3]),
        dims=64,
    )
    assert_counted(simulator, norm_rope_bytes(step))
    simulator.launches.clear()
    offsets = mx.array([0, 1, 2, 3])
    for heads in (8, 2):
        rope.kernel(normal(4, heads, 5, 64, dtype=half), offsets, dims=64)
    assert_counted(simulator, rope_alone(step))


@pytest.mark.parametrize("vocabulary", [700, 5000])
def test_sampling_reads_logits_once_and_writes_a_winner_a_part(
    simulator: metal_sim.Simulator, vocabulary: int
) -> None:
    """The kernel; the maximum before it reads them a first time."""
    logits = normal(3, 2, vocabulary, dtype=mx.float16)
    rows = SampleRows.of((1, 2, 3), (0.8, 1.0, 1.2))
    mx.eval(sample.kernel(logits, mx.zeros((3, 2), mx.int32), rows).tokens)
    (launch,) = simulator.launches
    assert once(launch.inputs["logits"], logits.nbytes)
    step = Step(replace(SMALL, vocabulary=vocabulary), batch=3, tokens=2, cached=9)
    counted = sample_bytes(step)
    written = sum(traffic.stored for traffic in launch.outputs.values())
    merged = written + 8 * 6 if vocabulary > SPLIT else 0
    assert counted.ours.moved == 2 * logits.nbytes + written + merged
    # 12 bytes of the table for each token that is the best so far in its lane, or might be.
    assert launch.inputs["table"].loaded < 12 * 0.75 * logits.size


@pytest.mark.parametrize("model", [QWEN, LLAMA], ids=lambda model: model.name)
@pytest.mark.parametrize(("batch", "tokens", "cached"), [(8, 5, 1024), (8, 1, 1024), (1, 5, 8192)])
def test_the_docs_show_what_the_script_prints(
    model: Model, batch: int, tokens: int, cached: int
) -> None:
    docs = Path(__file__).parent.parent / "docs" / "kernels.md"
    assert table(Step(model, batch, tokens, cached)) in docs.read_text()
