"""``CacheOptions``: what models keep of the tokens that they have read."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.config.checks import check_integer, plain_numbers
from mlx_spec.errors import InvalidRequest

KV_BITS = (2, 4, 8)
KV_GROUP_SIZES = (32, 64, 128)
# A text's first tokens, which caches of limited size never forget: as many as mlx-lm keeps.
KEPT_TOKENS = 4


@dataclass(frozen=True)
class CacheOptions:
    """What models keep of the tokens that they have read; of target and draft alike.

    Unlike other options of batching these change the text, as they do in mlx-lm: attention reads
    other numbers, or fewer tokens.

    Attributes:
        kv_bits: keep keys and values of full attention in so many bits a number, 4 or 8 (or 2);
            None keeps them as the model computes them. Sliding windows and recurrent states, which
            do not grow with the text, stay as they are.
        kv_group_size: numbers of a head that share a scale and a bias: 32, 64 or 128.
        quantized_kv_start: with ``kv_bits``, the position from which on tokens read quantized keys
            and values, those of all earlier tokens too; 0 from the first token on.
        max_kv_size: most tokens that full attention looks back to, a text's first 4 always among
            them; None for all. Not together with ``kv_bits``.

    Raises:
        InvalidRequest: a value outside its range.
    """

    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0
    max_kv_size: int | None = None

    @property
    def late(self) -> bool:
        """Whether rows on both sides of ``quantized_kv_start`` may run together."""
        return self.kv_bits is not None and self.quantized_kv_start > 0

    def __post_init__(self) -> None:
        plain_numbers(self)
        owner = "CacheOptions"
        if self.kv_bits is not None and self.kv_bits not in KV_BITS:
            raise InvalidRequest(f"[{owner}] kv_bits={self.kv_bits!r}, expected one of {KV_BITS}")
        if self.kv_group_size not in KV_GROUP_SIZES:
            raise InvalidRequest(
                f"[{owner}] kv_group_size={self.kv_group_size!r}, expected one of {KV_GROUP_SIZES}"
            )
        check_integer(owner, "quantized_kv_start", self.quantized_kv_start, 0)
        if self.max_kv_size is not None:
            check_integer(owner, "max_kv_size", self.max_kv_size, KEPT_TOKENS + 1)
            if self.kv_bits is not None:
                raise InvalidRequest(
                    f"[{owner}] kv_bits={self.kv_bits} and max_kv_size={self.max_kv_size}: a cache "
                    "that forgets old tokens cannot be quantized"
                )


PLAIN_CACHES = CacheOptions()
