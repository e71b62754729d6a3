"""One launch of one compiled kernel: buffers in, threads run, buffers and findings out."""

import ctypes
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from metal_sim import arrays, bindings, strict, toolchain
from metal_sim.counters import Launch, Traffic
from metal_sim.diagnosis import Diagnosis
from metal_sim.findings import Finding
from metal_sim.lines import line_of
from metal_sim.rewrite import rewrite
from metal_sim.signature import Specialisation

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Compiled:
    """A specialisation's machine code."""

    path: Path
    entry: int  # address of its function for one thread
    refused: tuple[Finding, ...]  # by Apple's compiler, as far as that can be told


_one_at_a_time = threading.Lock()
_loaded: dict[Specialisation, Compiled] = {}


def compiled(spec: Specialisation) -> Compiled:
    """Compile (or fetch) and load a specialisation."""
    if spec not in _loaded:
        bindings.runtime()  # its symbols must be there first
        source = rewrite(spec.source(line_marks=True)) + spec.entry()
        path = toolchain.build(source, toolchain.kernel_flags(), spec.body.name)
        library = ctypes.PyDLL(str(path))
        entry = ctypes.cast(library.sim_entry, ctypes.c_void_p).value or 0
        _loaded[spec] = Compiled(path, entry, tuple(strict.look(spec)))
    return _loaded[spec]


@dataclass(frozen=True)
class Output:
    """An output to be made: its shape, dtype and initial value."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    init_value: float | None = None

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.size

    def initial(self) -> bytes | None:
        """Its bytes before the launch, None where it has no initial value."""
        if self.init_value is None:
            return None
        filled = mx.full(self.shape, self.init_value, dtype=self.dtype)
        return arrays.to_bytes(filled, row_contiguous=True).data


@dataclass(frozen=True)
class Order:
    """In which order lanes, simdgroups and threadgroups run."""

    kind: str = "forward"
    seed: int = 0

    @staticmethod
    def parse(text: str) -> "Order":
        """``forward``, ``reverse`` or ``shuffled:7``."""
        kind, _, seed = text.partition(":")
        if kind not in bindings.ORDERS:
            raise ValueError(f"[metal_sim] order {text!r}: forward, reverse or shuffled:<seed>")
        return Order(kind, int(seed or 0))


@dataclass(frozen=True)
class Dispatch:
    """Everything a launch needs."""

    spec: Specialisation
    inputs: tuple[arrays.Bytes, ...]
    outputs: tuple[Output, ...]
    grid: Triple
    threadgroup: Triple


@dataclass
class Outcome:
    """What a launch left behind."""

    outputs: list[bytes]
    launch: Launch
    findings: list[Finding] = field(default_factory=list)


def _place(dispatch: Dispatch) -> tuple[list[int], list[bindings.Placed]]:
    """Put all buffers into the arena: (addresses the kernel gets, the outputs)."""
    runtime = bindings.runtime()
    addresses, outputs = [], []
    for buffer in dispatch.spec.buffers():
        if buffer.kind == "output":
            output = dispatch.outputs[buffer.index]
            initial = output.initial()
            placed = runtime.place(
                buffer.name, bindings.OUTPUT, output.dtype.size, output.nbytes, initial is not None
            )
            if initial is not None:
                placed.write(initial)
            outputs.append(placed)
            addresses.append(placed.address)
            continue
        data, element, start = _input_bytes(buffer.kind, dispatch.inputs[buffer.index])
        placed = runtime.place(buffer.name, bindings.INPUT, element, len(data), True)
        placed.write(data)
        addresses.append(placed.address + start)
    return addresses, outputs


def _input_bytes(kind: str, source: arrays.Bytes) -> tuple[bytes, int, int]:
    """(memory, element size, where element 0 lies) of an input or of what describes it."""
    if kind == "input":
        return source.data, source.itemsize, source.start
    if kind == "shape":
        return np.array(source.shape, np.int32).tobytes(), 4, 0
    if kind == "strides":
        return np.array(source.strides, np.int64).tobytes(), 8, 0
    return np.array(len(source.shape), np.int32).tobytes(), 4, 0


def _counted(
    dispatch: Dispatch, report: bindings.CReport, regions: list[bindings.CRegion]
) -> Launch:
    by_kind: dict[int, dict[str, Traffic]] = {0: {}, 1: {}, 2: {}}
    for r in regions:
        traffic = Traffic(r.size, r.loaded, r.stored, r.unique_loaded, r.unique_stored)
        by_kind[r.kind][r.name.decode()] = traffic
    return Launch(
        kernel=dispatch.spec.body.name,
        grid=dispatch.grid,
        threadgroup_size=dispatch.threadgroup,
        threads=report.threads,
        threadgroups=report.threadgroups,
        barriers=report.barriers,
        simd_operations=report.simd_operations,
        simd_barriers=report.simd_barriers,
        atomics=report.atomics,
        threadgroup_bytes=report.threadgroup_bytes,
        inputs=by_kind[bindings.INPUT],
        outputs=by_kind[bindings.OUTPUT],
        threadgroup=by_kind[bindings.THREADGROUP],
    )


def run(dispatch: Dispatch, order: Order, max_steps: int) -> Outcome:
    """Run a dispatch once, its lanes in the given order."""
    with _one_at_a_time:
        return _run(dispatch, order, max_steps)


def _run(dispatch: Dispatch, order: Order, max_steps: int) -> Outcome:
    code = compiled(dispatch.spec)
    runtime = bindings.runtime()
    runtime.reset()
    addresses, outputs = _place(dispatch)
    spec = bindings.CSpec(order=bindings.ORDERS[order.kind], seed=order.seed)
    spec.max_steps = max_steps
    for axis in range(3):
        spec.grid[axis] = dispatch.grid[axis]
        spec.dispatched[axis] = dispatch.threadgroup[axis]
        spec.threadgroup[axis] = min(dispatch.threadgroup[axis], dispatch.grid[axis])
    report = runtime.launch(code.entry, addresses, spec)
    regions = runtime.regions()
    shape = tuple(spec.threadgroup), dispatch.grid
    diagnosis = Diagnosis(
        dispatch.spec.body.name, regions, *shape, partial(line_of, code.path, code.entry)
    )
    found = [diagnosis.explain(raw) for raw in runtime.findings(report.findings)]
    return Outcome(
        [placed.read() for placed in outputs], _counted(dispatch, report, regions), found
    )
