"""What the simulator can find wrong with a launch, and how it is said."""

from dataclasses import dataclass

KINDS = {
    1: "out_of_bounds",
    2: "race",
    3: "uninitialised",
    4: "unwritten",
    5: "divergent_barrier",
    6: "divergent_simd",
    7: "inactive_lane",
    8: "misaligned",
    9: "threadgroup_memory",
    10: "input_write",
    11: "division_by_zero",
    12: "endless_loop",
    13: "array_bounds",
    14: "crash",
    15: "threadgroup_size",
    16: "order_dependent",
    17: "address_space",
    18: "implicit_bfloat",
}
NOBODY = 0xFFFFFFFF


@dataclass(frozen=True)
class Finding:
    """One thing found: what, in which kernel and buffer, by which thread.

    ``kind`` is one of ``KINDS``' names; ``index`` counts elements of the buffer; ``line`` is the
    line in the kernel's source where it is known; ``count`` how often it was seen there.
    """

    kind: str
    kernel: str
    message: str
    buffer: str | None = None
    index: int | None = None
    thread: int | None = None
    line: str | None = None
    count: int = 1

    def __str__(self) -> str:
        where = f" at {self.line}" if self.line else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"[{self.kernel}] {self.kind}: {self.message}{where}{times}"


class MetalFinding(AssertionError):
    """A launch did something that Metal does not allow; ``findings`` has all of it."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        super().__init__("\n" + "\n".join(str(finding) for finding in findings))
