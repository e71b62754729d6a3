"""GGUF's kinds of quantization as MLX's: the same weights in another order of bits.

Both keep a scale and an offset for every 32 weights: w = scale * q + bias with q >= 0 in MLX. What
GGUF counts from the middle is counted from the lowest instead, which changes no weight::

    Q4_0    d * (q - 8)            4 bits    scale d          bias -8 d
    Q4_1    d * q + m              4 bits    scale d          bias m
    Q5_0    d * (q - 16)           5 bits    scale d          bias -16 d
    Q5_1    d * q + m              5 bits    scale d          bias m
    Q8_0    d * q                  8 bits    scale d          bias -128 d   (q + 128)
    Q4_K    d s * q - e m          4 bits    scale d s        bias -e m     (s, m: 6 bits each,
    Q5_K    d s * q - e m          5 bits    scale d s        bias -e m      products need float32)
    IQ4_NL  d * v[q]               8 bits    scale d          bias -128 d   (v: 16 whole numbers)
    IQ4_XS  d (s - 32) * v[q]      8 bits    scale d (s - 32) bias -128 times it
    MXFP4   2^e * f[q]             MLX has this kind itself

d, e and m are float16 in the file. The other kinds (Q6_K, Q2_K, Q3_K, most IQ) have a scale for
every 16 weights or fewer, which MLX's kinds have not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

Array = np.ndarray[Any, Any]

GROUP = 32
# Weights that are repacked at a time: what lies between is some bytes each.
_AT_ONCE = 1 << 22
_Q = GGMLQuantizationType
# The values of IQ4's 16 codes, counted from -128.
_IQ4 = np.array(
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241], dtype=np.uint8
)


@dataclass(frozen=True)
class Packed:
    """Weights as ``mx.quantized_matmul`` takes them; leading axes are those of the tensor.

    Attributes:
        weight: uint32 [..., inputs * bits / 32], weight i at bit i * bits, lowest first.
        scales: [..., inputs / 32], float32, or uint8 exponents (mxfp4).
        biases: as the scales; None for mxfp4.
        bits: of a weight.
        mode: MLX's name of the kind.
    """

    weight: Array
    scales: Array
    biases: Array | None
    bits: int
    mode: str = "affine"


def packs(kind: GGMLQuantizationType) -> bool:
    """Whether MLX has these very weights in a kind of its own."""
    return kind in _KINDS


def pack(data: Array, kind: GGMLQuantizationType) -> Packed:
    """Repack a tensor.

    Args:
        data: uint8 [..., bytes of a row], blocks as the file has them.
        kind: one that :func:`packs`.
    """
    bits, read = _KINDS[kind]
    block, size = GGML_QUANT_SIZES[kind]
    *leading, width = data.shape
    blocks = data.reshape(-1, size)
    groups = len(blocks) * block // GROUP
    weight = np.empty((groups, bits * GROUP // 8), dtype=np.uint8)
    floats = np.uint8 if kind is _Q.MXFP4 else np.float32
    scales, biases = np.empty(groups, dtype=floats), np.empty(groups, dtype=floats)
    step, each = max(1, _AT_ONCE // block), block // GROUP
    for start in range(0, len(blocks), step):
        part = slice(start * each, (start + step) * each)
        q, scale, bias = read(blocks[start : start + step])
        weight[part] = q.reshape(-1, weight.shape[1])
        scales[part], biases[part] = scale.ravel(), bias.ravel()
    inputs = width // size * block
    shape = (*leading, inputs // GROUP)
    return Packed(
        weight.reshape(*leading, -1).view(np.uint32),
        scales.reshape(shape),
        None if kind is _Q.MXFP4 else biases.reshape(shape),
        bits,
        "mxfp4" if kind is _Q.MXFP4 else "affine",
    )


def _half(blocks: Array, at: int) -> Array:
    """The float16 at a byte of every block, as float32 [blocks, 1]."""
    halves: Array = blocks[:, at : at + 2].copy().view(np.float16)
    return halves.astype(np.float32)


def _nibbles(q: Array) -> Array:
    """Four-bit numbers in order, from bytes whose low halves come first and high halves then.

    Args:
        q: uint8 [..., n], n even: numbers i and n + i in byte i.

    Returns:
        uint8 [..., n]: numbers 2 i and 2 i + 1 in byte i.
    """
    pairs = np.ascontiguousarray(q).view(np.uint16)
    low = (pairs & 0x0F) | ((pairs >> 4) & 0xF0)
    high = ((pairs >> 4) & 0x0F) | ((pairs >> 8) & 0xF0)
    return np.concatenate([low, high], axis=-1).astype(np.uint8)


def _numbers(q: Array) -> Array:
    """The same numbers, one a byte: uint8 [..., 2 n]."""
    return np.concatenate([q & 0x0F, q >> 4], axis=-1)


def _fives(q: Array) -> Array:
    """Five-bit numbers, packed: uint8 [..., n] to [..., 5 n / 8]."""
    two = q[..., 0::2].astype(np.uint16) | (q[..., 1::2].astype(np.uint16) << 5)
    four = two[..., 0::2].astype(np.uint32) | (two[..., 1::2].astype(np.uint32) << 10)
    eight = four[..., 0::2].astype(np.uint64) | (four[..., 1::2].astype(np.uint64) << 20)
    packed: Array = eight[..., None].view(np.uint8)
    return packed[..., :5]


def _q4_0(blocks: Array) -> tuple[Array, Array, Array]:
    d = _half(blocks, 0)
    return _nibbles(blocks[:, 2:]), d, -8 * d


def _q4_1(blocks: Array) -> tuple[Array, Array, Array]:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _fifth_bits(blocks: Array, at: int) -> Array:
    """The numbers of blocks whose fifth bits lie in four bytes before the others."""
    fifth = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    numbers: Array = _numbers(blocks[:, at + 4 :]) | (fifth << 4)
    return numbers


def _q5_0(blocks: Array) -> tuple[Array, Array, Array]:
    d = _half(blocks, 0)
    return _fives(_fifth_bits(blocks, 2)), d, -16 * d


def _q5_1(blocks: Array) -> tuple[Array, Array, Array]:
    return _fives(_fifth_bits(blocks, 4)), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Array) -> tuple[Array, Array, Array]:
    d = _half(blocks, 0)
    return blocks[:, 2:] ^ 0x80, d, -128 * d


def _k_scales(blocks: Array) -> tuple[Array, Array]:
    """Scales and biases of the eight groups of a K block, [blocks, 8] each."""
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    offsets = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return _half(blocks, 0) * scales, -(_half(blocks, 2) * offsets)


def _q4_k(blocks: Array) -> tuple[Array, Array, Array]:
    return _nibbles(blocks[:, 16:].reshape(-1, 4, 32)), *_k_scales(blocks)


def _q5_k(blocks: Array) -> tuple[Array, Array, Array]:
    # Bit g of byte i is the fifth bit of number i of group g.
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    numbers = _numbers(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _fives(numbers | (fifth << 4)), *_k_scales(blocks)


def _iq4_nl(blocks: Array) -> tuple[Array, Array, Array]:
    d = _half(blocks, 0)
    return _IQ4[_numbers(blocks[:, 2:])], d, -128 * d


def _iq4_xs(blocks: Array) -> tuple[Array, Array, Array]:
    groups = np.arange(8)
    low = (blocks[:, 4 + groups // 2] >> (4 * (groups % 2)).astype(np.uint8)) & 15
    high = (blocks[:, 2 + groups // 4] >> (2 * (groups % 4)).astype(np.uint8)) & 3
    scales = _half(blocks, 0) * ((low | (high << 4)).astype(np.float32) - 32)
    return _IQ4[_numbers(blocks[:, 8:].reshape(-1, 8, 16))], scales, -128 * scales


def _mxfp4(blocks: Array) -> tuple[Array, Array, Array]:
    return _nibbles(blocks[:, 1:]), blocks[:, 0], blocks[:, 0]


_KINDS: dict[GGMLQuantizationType, tuple[int, Callable[[Array], tuple[Array, Array, Array]]]] = {
    _Q.Q4_0: (4, _q4_0),
    _Q.Q4_1: (4, _q4_1),
    _Q.Q5_0: (5, _q5_0),
    _Q.Q5_1: (5, _q5_1),
    _Q.Q8_0: (8, _q8_0),
    _Q.Q4_K: (4, _q4_k),
    _Q.Q5_K: (5, _q5_k),
    _Q.IQ4_NL: (8, _iq4_nl),
    _Q.IQ4_XS: (8, _iq4_xs),
    _Q.MXFP4: (4, _mxfp4),
}
