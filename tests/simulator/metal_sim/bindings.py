"""ctypes over the runtime's shared library: buffers, launches, what was found and counted."""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

from metal_sim import toolchain

INPUT, OUTPUT, THREADGROUP = 0, 1, 2
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}


class CFinding(ctypes.Structure):
    """struct Finding of runtime/abi.h."""

    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("region", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("size", ctypes.c_uint32),
        ("write", ctypes.c_uint32),
        ("thread", ctypes.c_uint32),
        ("other", ctypes.c_uint32),
        ("site", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
    ]


class CRegion(ctypes.Structure):
    """struct RegionReport."""

    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("element", ctypes.c_uint32),
        ("size", ctypes.c_uint64),
        ("loaded", ctypes.c_uint64),
        ("stored", ctypes.c_uint64),
        ("unique_loaded", ctypes.c_uint64),
        ("unique_stored", ctypes.c_uint64),
        ("name", ctypes.c_char * 64),
    ]


class CSpec(ctypes.Structure):
    """struct LaunchSpec."""

    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("threadgroup", ctypes.c_uint32 * 3),
        ("dispatched", ctypes.c_uint32 * 3),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("max_steps", ctypes.c_uint64),
    ]


class CReport(ctypes.Structure):
    """struct LaunchReport."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in (
                *("threads", "threadgroups", "barriers", "simd_operations"),
                *("simd_barriers", "atomics", "threadgroup_bytes"),
            )
        ),
        ("aborted", ctypes.c_uint32),
        ("findings", ctypes.c_uint32),
    ]


@dataclass(frozen=True)
class Placed:
    """A buffer in the arena: where its bytes begin, and how many there are."""

    address: int
    size: int

    def write(self, data: bytes) -> None:
        """Fill it."""
        ctypes.memmove(self.address, data, len(data))

    def read(self) -> bytes:
        """Its bytes after the launch."""
        return ctypes.string_at(self.address, self.size)


class Runtime:
    """The loaded library. One launch at a time: ``reset``, ``place`` buffers, ``launch``."""

    def __init__(self, path: Path) -> None:
        # PyDLL keeps the interpreter lock: nothing else of this process runs during a launch.
        self._library = ctypes.PyDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        lib = self._library
        lib.sim_add_buffer.restype = ctypes.c_void_p
        lib.sim_add_buffer.argtypes = [
            *(ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint32)
        ]
        lib.sim_findings.restype = ctypes.POINTER(CFinding)
        lib.sim_region.restype = ctypes.POINTER(CRegion)

    def reset(self) -> None:
        """Forget all buffers and findings."""
        self._library.sim_reset()

    def place(self, name: str, kind: int, element: int, size: int, filled: bool) -> Placed:
        """A new buffer of `size` bytes; unfilled ones hold a pattern and count as unwritten."""
        address = self._library.sim_add_buffer(name.encode(), kind, element, size, int(filled))
        if address is None:
            raise MemoryError(f"[metal_sim] no room for buffer {name} of {size} bytes")
        return Placed(address, size)

    def launch(self, entry: int, addresses: list[int], spec: CSpec) -> CReport:
        """Run all threads of the grid."""
        arguments = (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
        report = CReport()
        self._library.sim_launch(
            ctypes.c_void_p(entry), arguments, ctypes.byref(spec), ctypes.byref(report)
        )
        return report

    def findings(self, count: int) -> list[CFinding]:
        """What the launch found: copies."""
        first = self._library.sim_findings()
        return [CFinding.from_buffer_copy(first[i]) for i in range(count)]

    def regions(self) -> list[CRegion]:
        """All buffers and threadgroup memories with their traffic: copies."""
        lib = self._library
        return [
            CRegion.from_buffer_copy(lib.sim_region(i).contents) for i in range(lib.sim_regions())
        ]


@functools.cache
def runtime() -> Runtime:
    """The one runtime of this process, compiled on first use."""
    path = toolchain.build(toolchain.runtime_source(), toolchain.runtime_flags(), "runtime")
    return Runtime(path)
