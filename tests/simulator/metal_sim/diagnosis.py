"""From the runtime's records to sentences."""

from collections.abc import Callable

from metal_sim import bindings
from metal_sim.findings import KINDS, NOBODY, Finding

_SIGNALS = {4: "illegal instruction", 7: "bus error", 8: "arithmetic", 11: "wild address"}


class Diagnosis:
    """Puts one launch's findings into words: it knows the launch's buffers and shape."""

    def __init__(
        self,
        kernel: str,
        regions: list[bindings.CRegion],
        threadgroup: tuple[int, ...],
        grid: tuple[int, ...],
        line_of: Callable[[int], str | None],
    ) -> None:
        self._kernel = kernel
        self._regions = regions
        self._threadgroup = threadgroup
        self._line_of = line_of
        self._groups = [-(-grid[i] // threadgroup[i]) for i in range(3)]

    def explain(self, raw: bindings.CFinding) -> Finding:
        """The finding in words."""
        kind = KINDS[raw.kind]
        region = self._regions[raw.region] if raw.region >= 0 else None
        index = raw.offset // region.element if region is not None else None
        return Finding(
            kind=kind,
            kernel=self._kernel,
            message=getattr(self, f"_{kind}")(raw),
            buffer=region.name.decode() if region is not None else None,
            index=index,
            thread=None if raw.thread == NOBODY else raw.thread % 1024,
            line=self._line_of(raw.site),
            count=raw.count,
        )

    def thread(self, number: int) -> str:
        """``thread 5 of threadgroup (2, 0, 0)``."""
        group, index = divmod(number, 1024)
        x, y = self._groups[0], self._groups[1]
        return f"thread {index} of threadgroup ({group % x}, {group // x % y}, {group // (x * y)})"

    def _place(self, raw: bindings.CFinding) -> str:
        region = self._regions[raw.region]
        index, inside = divmod(raw.offset, region.element)
        byte = f" (byte {inside} of it)" if inside else ""
        return f"{region.name.decode()}[{index}]{byte}"

    def _access(self, raw: bindings.CFinding) -> str:
        verb = "stores" if raw.write else "loads"
        return f"{self.thread(raw.thread)} {verb} {raw.size} bytes at {self._place(raw)}"

    def _out_of_bounds(self, raw: bindings.CFinding) -> str:
        region = self._regions[raw.region]
        return f"{self._access(raw)}, which has {region.size // region.element} elements"

    def _race(self, raw: bindings.CFinding) -> str:
        other = self.thread(raw.other)
        return f"{self._access(raw)}, unordered with an access by {other}"

    def _uninitialised(self, raw: bindings.CFinding) -> str:
        return f"{self._access(raw)}, which nobody has written"

    def _unwritten(self, raw: bindings.CFinding) -> str:
        region = self._regions[raw.region]
        return (
            f"{raw.size} of {region.size} bytes of the output are never written, "
            f"the first in {self._place(raw)}"
        )

    def _divergent_barrier(self, raw: bindings.CFinding) -> str:
        who = self.thread(raw.thread)
        if raw.offset:
            return f"{who} waits at a barrier, {raw.offset} threads of its threadgroup have ended"
        return f"{who} waits at one barrier, {self.thread(raw.other)} at another"

    def _divergent_simd(self, raw: bindings.CFinding) -> str:
        return (
            f"{self.thread(raw.thread)} is at a simd operation that "
            f"{self.thread(raw.other)} of its simdgroup does not reach"
        )

    def _inactive_lane(self, raw: bindings.CFinding) -> str:
        return f"{self.thread(raw.thread)} reads lane {raw.other}, which takes no part"

    def _misaligned(self, raw: bindings.CFinding) -> str:
        return f"{self._access(raw)}, an address that is no multiple of {raw.size}"

    def _threadgroup_memory(self, raw: bindings.CFinding) -> str:
        return f"{raw.offset} bytes of threadgroup memory, 32768 exist"

    def _input_write(self, raw: bindings.CFinding) -> str:
        return f"{self._access(raw)}, an input"

    def _division_by_zero(self, raw: bindings.CFinding) -> str:
        return f"{self.thread(raw.thread)} divides an integer by zero"

    def _endless_loop(self, raw: bindings.CFinding) -> str:
        return f"{self.thread(raw.thread)} does not come to an end"

    def _array_bounds(self, raw: bindings.CFinding) -> str:
        return f"{self.thread(raw.thread)} uses index {raw.offset} of a shorter array"

    def _crash(self, raw: bindings.CFinding) -> str:
        if raw.thread == NOBODY or not raw.other:
            return "more than 32 threadgroup variables"
        what = _SIGNALS.get(raw.other, f"signal {raw.other}")
        place = f" at {self._place(raw)}" if raw.region >= 0 else f" at address {raw.offset:#x}"
        return f"{self.thread(raw.thread)}: {what}{place} (or its stack of 256 KiB is full)"
