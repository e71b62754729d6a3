"""Kinds of quantization: MLX's form of each stands for the very same weights as GGUF's.

The other account of what a block means is the ``gguf`` package's own ``dequantize``.
"""

from __future__ import annotations

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES

from mlx_spec.model.gguf.kinds import GROUP, Packed, pack, packs
from tests.gguf_files import Q, random_blocks

EXACT = {
    Q.Q4_0: 4,
    Q.Q4_1: 4,
    Q.Q5_0: 5,
    Q.Q5_1: 5,
    Q.Q8_0: 8,
    Q.Q4_K: 4,
    Q.Q5_K: 5,
    Q.IQ4_NL: 8,
    Q.IQ4_XS: 8,
    Q.MXFP4: 4,
}
# Their scales are products of a float16 and a small number.
WIDE = (Q.Q4_K, Q.Q5_K, Q.IQ4_XS)


def arrays(packed: Packed, dtype: mx.Dtype = mx.float32) -> tuple[mx.array, ...]:
    parts = [packed.weight, packed.scales, *([] if packed.biases is None else [packed.biases])]
    return tuple(
        mx.array(part) if part.dtype in (np.uint32, np.uint8) else mx.array(part).astype(dtype)
        for part in parts
    )


def values(packed: Packed, dtype: mx.Dtype = mx.float32) -> np.ndarray:
    weight, scales, *biases = arrays(packed, dtype)
    scales, biases = (
        (scales, None)
        if packed.mode == "mxfp4"
        else (scales.astype(mx.float32), biases[0].astype(mx.float32))
    )
    plain = mx.dequantize(weight, scales, biases, GROUP, packed.bits, packed.mode)
    return np.array(plain.astype(mx.float32))


def test_every_kind_is_known() -> None:
    assert {kind for kind in Q if packs(kind)} == set(EXACT)


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(3, 256), (2, 5, 512)])
def test_the_weights_are_the_same_bit_for_bit(kind: Q, shape: tuple[int, ...]) -> None:
    data = random_blocks(kind, shape)
    packed = pack(data, kind)
    assert packed.bits == EXACT[kind]
    assert packed.weight.shape == (*shape[:-1], shape[-1] * packed.bits // 32)
    wanted = gguf.dequantize(data, kind)
    assert wanted.shape == shape
    assert np.array_equal(values(packed), wanted)


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_products_are_those_of_the_weights(kind: Q) -> None:
    data = random_blocks(kind, (16, 256), seed=1)
    packed = pack(data, kind)
    x = mx.random.normal((4, 256), key=mx.random.key(0))
    weight, scales, *biases = arrays(packed)
    have = mx.quantized_matmul(
        x, weight, scales, *biases, group_size=GROUP, bits=packed.bits, mode=packed.mode
    )
    wanted = x @ mx.array(gguf.dequantize(data, kind)).T
    assert mx.allclose(have, wanted, atol=2e-5)


@pytest.mark.parametrize(
    "kind", [kind for kind in EXACT if kind is not Q.MXFP4], ids=lambda kind: kind.name
)
def test_float16_scales_round_the_wide_kinds_only(kind: Q) -> None:
    """What the page on GGUF says of ``dtype="float16"``."""
    data = random_blocks(kind, (8, 1024), seed=2)
    packed = pack(data, kind)
    wanted = gguf.dequantize(data, kind)
    off = np.abs(values(packed, mx.float16) - wanted).max() / np.abs(wanted).max()
    assert (0 < off < 2e-3) if kind in WIDE else off == 0


def test_large_tensors_are_repacked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_blocks(Q.Q5_K, (7, 768))
    whole = values(pack(data, Q.Q5_K))
    monkeypatch.setattr("mlx_spec.model.gguf.kinds._AT_ONCE", 512)
    assert np.array_equal(values(pack(data, Q.Q5_K)), whole)


@pytest.mark.parametrize("kind", [Q.Q2_K, Q.Q3_K, Q.Q6_K, Q.IQ3_S, Q.IQ2_XXS], ids=lambda k: k.name)
def test_finer_scales_have_no_kind_of_mlx(kind: Q) -> None:
    assert not packs(kind)
    data = random_blocks(kind, (4, 512))
    plain = gguf.dequantize(data, kind)
    assert np.isfinite(plain).all()
    assert np.abs(plain).max() < 2
    assert data.shape[-1] == 512 // GGML_QUANT_SIZES[kind][0] * GGML_QUANT_SIZES[kind][1]
