"""What one launch moved and did: bytes per buffer, barriers, simd operations."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Traffic:
    """Bytes of one buffer: with repetition, and each byte once."""

    size: int
    loaded: int
    stored: int
    unique_loaded: int
    unique_stored: int


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    ``inputs``, ``outputs`` and ``threadgroup`` map names to their traffic; ``barriers`` counts
    threadgroup barriers per threadgroup, ``simd_operations`` per simdgroup.
    """

    kernel: str
    grid: tuple[int, int, int]
    threadgroup_size: tuple[int, int, int]
    threads: int
    threadgroups: int
    barriers: int
    simd_operations: int
    simd_barriers: int
    atomics: int
    threadgroup_bytes: int
    inputs: dict[str, Traffic] = field(default_factory=dict)
    outputs: dict[str, Traffic] = field(default_factory=dict)
    threadgroup: dict[str, Traffic] = field(default_factory=dict)

    @property
    def unique_bytes(self) -> int:
        """Bytes that must cross to and from device memory at least once."""
        moved = sum(traffic.unique_loaded for traffic in self.inputs.values())
        return moved + sum(t.unique_stored + t.unique_loaded for t in self.outputs.values())

    @property
    def loaded(self) -> int:
        """Bytes loaded from device memory, with repetition."""
        return sum(t.loaded for t in (*self.inputs.values(), *self.outputs.values()))

    @property
    def stored(self) -> int:
        """Bytes stored to device memory, with repetition."""
        return sum(traffic.stored for traffic in self.outputs.values())
