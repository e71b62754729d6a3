"""Kernels nobody here wrote: mlx-lm's own, from the installed package, against references.

What they do wrong (two data races) is stated as known; were it fixed there, the test would say so.
"""

from collections.abc import Iterator
from types import ModuleType

import mlx.core as mx
import mlx.nn as nn
import pytest

import metal_sim

metal_sim.skip_unless_available()
pytest.importorskip("mlx_lm.kernels", reason="an mlx-lm without fused kernels")

DTYPES = [mx.float32, mx.float16, mx.bfloat16]
TOLERANCE = {mx.float32: 1e-5, mx.float16: 1e-3, mx.bfloat16: 1e-2}
ORDERS = ("forward", "reverse", "shuffled:1")

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def sim() -> Iterator[metal_sim.Simulator]:
    """A simulator for which every finding is a failure."""
    mx.random.seed(0)
    with metal_sim.installed(ORDERS) as simulator:
        yield simulator


@pytest.fixture
def lenient() -> Iterator[metal_sim.Simulator]:
    """A simulator that collects findings."""
    mx.random.seed(0)
    with metal_sim.installed(ORDERS, collect=True) as simulator:
        yield simulator


def kernels(name: str) -> ModuleType:
    """A module of mlx-lm whose kernels run here."""
    return metal_sim.fresh_module(f"mlx_lm.{name}")


def check(got: mx.array, want: mx.array, dtype: mx.Dtype) -> None:
    """Close, as a part of the largest value."""
    error = mx.abs(got.astype(mx.float32) - want.astype(mx.float32)).max()
    assert error.item() <= TOLERANCE[dtype] * mx.abs(want).max().item()


def rms(x: mx.array, weight: mx.array | None = None) -> mx.array:
    """The reference norm, in float32."""
    return mx.fast.rms_norm(x.astype(mx.float32), weight, 1e-5)


HEADS = {"n_heads": 6, "n_kv_heads": 2, "head_dim": 80, "eps": 1e-5, "query_scale": 0.7}


def split_heads(qkvg: mx.array) -> tuple[mx.array, mx.array]:
    """Normed q (scaled) and k of fused rows: [2, 3, 6, 80] and [2, 3, 2, 80]."""
    normed = rms(qkvg[..., : 8 * 80].reshape(2, 3, 8, 80))
    return normed[:, :, :6] * 0.7, normed[:, :, 6:]


def test_qk_norm(sim: metal_sim.Simulator, dtype: mx.Dtype) -> None:
    qkvg = mx.random.normal((2, 3, 16 * 80)).astype(dtype)
    q, k = kernels("kernels.qk_norm").qk_norm(qkvg, **HEADS)
    for got, want in zip((q, k), split_heads(qkvg), strict=True):
        check(got, want, dtype)


@pytest.mark.parametrize("offset", [7, [5, 40]])
def test_qk_norm_rope(sim: metal_sim.Simulator, dtype: mx.Dtype, offset: int | list[int]) -> None:
    qkvg = mx.random.normal((2, 3, 16 * 80)).astype(dtype)
    offset = mx.array(offset) if isinstance(offset, list) else offset
    module = kernels("kernels.qk_norm_rope")
    heads = module.qk_norm_rope(qkvg, **HEADS, rope_base=10000.0, offset=offset)
    for got, plain in zip(heads, split_heads(qkvg), strict=True):
        turned = mx.fast.rope(
            plain.swapaxes(1, 2), 80, traditional=True, base=10000.0, scale=1.0, offset=offset
        )
        check(got, turned.swapaxes(1, 2), dtype)


def test_rms_norm_sigmoid_gate_on_strided_input(sim: metal_sim.Simulator, dtype: mx.Dtype) -> None:
    x = mx.random.normal((2, 3, 4, 48)).astype(dtype)
    gate = mx.random.normal((2, 3, 4 * 48)).astype(dtype)
    module = kernels("kernels.rms_norm_sigmoid_gate")
    got = module.rms_norm_sigmoid_gate(x.swapaxes(1, 2), gate, eps=1e-5)
    want = rms(x).reshape(2, 3, -1) * mx.sigmoid(gate.astype(mx.float32))
    check(got, want, dtype)


def test_norm_add_norm(sim: metal_sim.Simulator, dtype: mx.Dtype) -> None:
    width = 1000
    branch = mx.random.normal((2, 3, width)).astype(dtype)
    stream, alpha, beta = (mx.random.normal(s) for s in ((2, 3, width), (width,), (width,)))
    norm = nn.RMSNorm(width)
    summed, normed = kernels("kernels.norm_add_norm").norm_add_norm(
        branch, stream, alpha=alpha, beta=beta, post_weight=None, post_eps=1e-5, next_norm=norm
    )
    want = alpha * stream + beta * rms(branch)
    check(summed, want, dtype)
    check(normed, rms(want), dtype)
    launch = sim.launches[-1]
    once = branch.nbytes + stream.nbytes
    assert launch.inputs["branch"].loaded + launch.inputs["stream"].loaded == once


def test_post_expert_norm_combine(sim: metal_sim.Simulator, dtype: mx.Dtype) -> None:
    experts = mx.random.normal((5, 4, 1000)).astype(dtype)
    weights, norm_weight = mx.random.uniform(shape=(5, 4)), mx.random.normal((1000,))
    module = kernels("kernels.post_expert_norm_combine")
    got = module.post_expert_norm_combine(experts, weights, norm_weight=norm_weight, eps=1e-5)
    scaled = experts.astype(mx.float32) * norm_weight
    check(got, (rms(scaled) * weights[..., None]).sum(1), dtype)


def test_expert_routing(sim: metal_sim.Simulator, dtype: mx.Dtype) -> None:
    logits, bias = mx.random.normal((3, 2, 40)).astype(dtype), mx.random.normal((40,)) * 0.1
    experts, weights = kernels("kernels.expert_routing").expert_routing(
        logits, bias, top_k=4, multiplier=1.3, score_eps=1e-6, route_scale=2.0
    )
    scores = mx.sigmoid(logits.astype(mx.float32) * 1.3)
    chosen = mx.take_along_axis(scores, experts, -1)
    check(weights, chosen / (chosen.sum(-1, keepdims=True) + 1e-6) * 2, mx.float32)
    ranked = mx.take_along_axis(scores + bias, experts, -1)
    check(ranked, -mx.sort(-(scores + bias), axis=-1)[..., :4], mx.float32)


def delta_inputs(head_dim: int, dtype: mx.Dtype, vector_gate: bool) -> tuple[mx.array, ...]:
    """q, k, v, g, beta, state for 2 rows of 3 steps, 2 key heads and 4 value heads of 16."""
    q, k = (mx.random.normal((2, 3, 2, head_dim)).astype(dtype) / head_dim**0.5 for _ in "qk")
    v = mx.random.normal((2, 3, 4, 16)).astype(dtype)
    gates = (2, 3, 4, head_dim) if vector_gate else (2, 3, 4)
    g, beta = mx.random.uniform(shape=gates), mx.random.uniform(shape=(2, 3, 4))
    return q, k, v, g, beta, mx.random.normal((2, 4, 16, head_dim))


@pytest.mark.parametrize(
    ("head_dim", "vector_gate", "kernel"),
    [
        (64, False, "gated_delta_step"),
        (64, True, "gated_delta_step_vec"),
        (128, False, "gated_delta_step_packed_btree"),
    ],
)
def test_gated_delta(
    sim: metal_sim.Simulator, dtype: mx.Dtype, head_dim: int, vector_gate: bool, kernel: str
) -> None:
    module = kernels("models.gated_delta")
    inputs = delta_inputs(head_dim, dtype, vector_gate)
    got = module.gated_delta_kernel(*inputs)
    want = module.gated_delta_ops(*inputs)
    assert sim.launches[-1].kernel == kernel
    for mine, reference in zip(got, want, strict=True):
        check(mine, reference, dtype)


def test_gated_delta_with_a_mask_races_harmlessly(
    lenient: metal_sim.Simulator, dtype: mx.Dtype
) -> None:
    """All 32 lanes store the same zero where the mask is off: a race, though of equal values."""
    module = kernels("models.gated_delta")
    inputs = delta_inputs(64, dtype, False)
    mask = mx.array([[True, True, False], [True, False, False]])
    y, state = module.gated_delta_kernel(*inputs, mask)
    y_want, state_want = module.gated_delta_ops(*inputs, mask)
    check(y, mx.where(mask[..., None, None], y_want, 0), dtype)
    check(state, state_want, dtype)
    assert {(finding.kind, finding.buffer) for finding in lenient.take_findings()} == {
        ("race", "y")
    }


def test_ssm_update(sim: metal_sim.Simulator, dtype: mx.Dtype) -> None:
    module = kernels("models.ssm")
    shapes = {"x": (2, 1, 4, 16), "B": (2, 1, 2, 64), "C": (2, 1, 2, 64), "dt": (2, 1, 4)}
    x, b, c, dt = (mx.random.normal(shape).astype(dtype) for shape in shapes.values())
    a_log, d, dt_bias = (mx.random.normal((4,)) for _ in range(3))
    state = mx.random.normal((2, 4, 16, 64))
    got = module.ssm_update_kernel(x, a_log, b, c, d, dt, dt_bias, state, (0.001, 100.0))
    x, b, c, dt = (array.astype(mx.float32) for array in (x, b, c, dt))
    want = module.ssm_attn(x, a_log, b, c, d, dt, dt_bias, state, (0.001, 100.0))
    for mine, reference in zip(got, want, strict=True):
        check(mine, reference, dtype)


@pytest.mark.parametrize("inverted", [False, True])
def test_bitlinear(sim: metal_sim.Simulator, dtype: mx.Dtype, inverted: bool) -> None:
    module = kernels("models.bitlinear_layers")
    layer = module.BitLinear(96, 40, bias=False, invert_weight_scales=inverted)
    packed = mx.random.randint(0, 256, (10, 96)).astype(mx.uint8)
    codes = mx.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)])
    x = mx.random.normal((3, 96)).astype(dtype)
    layer.weight_scale = mx.array([1.75]).astype(dtype)
    scale = 1 / 1.75 if inverted else 1.75
    want = x.astype(mx.float32) @ (codes.astype(mx.float32) - 1).T * scale
    check(layer.execute_matmul_kernel(x, packed), want, dtype)


def test_kl_loss_races(lenient: metal_sim.Simulator, dtype: mx.Dtype) -> None:
    """Its threadgroup memory is written again before all have read it, and a barrier of
    ``mem_none`` stands where threadgroup memory is exchanged."""
    q, p = (mx.random.normal((2, 1000)).astype(dtype) for _ in "qp")
    kernels("tuner.losses").kl_div_loss(q, p)
    found = lenient.take_findings()
    assert {(finding.kind, finding.buffer) for finding in found} == {("race", "shared")}
    assert all(finding.line and finding.line.startswith("kl_forward:") for finding in found)


def test_kl_loss_with_its_barriers_is_right(
    sim: metal_sim.Simulator, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same kernels with the missing barriers put in: no finding, and the right values."""
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    make = mx.fast.metal_kernel

    def repaired(*, source: str, **options: object) -> object:
        source = source.replace("mem_flags::mem_none", "mem_flags::mem_threadgroup")
        return make(source=source.replace("// Share the sum_exp", f"{barrier}\n//"), **options)

    monkeypatch.setattr(mx.fast, "metal_kernel", repaired)
    q, p = (mx.random.normal((2, 5000)).astype(dtype) for _ in "qp")
    got = kernels("tuner.losses").kl_div_loss(q, p)
    log_q, log_p = (nn.log_softmax(x.astype(mx.float32)) for x in (q, p))
    check(got, (mx.exp(log_p) * (log_p - log_q)).sum(-1), dtype)
