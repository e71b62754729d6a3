"""One small kernel, run for its findings and values: what the simulator's own tests are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from metal_sim.counters import Launch
from metal_sim.findings import Finding
from metal_sim.install import MAX_STEPS, installed

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Probe:
    """A kernel body over inputs ``a``, ``b``, ... and an output ``out``.

    `i` is the thread's position in the grid, declared before the body.
    """

    source: str
    inputs: Sequence[Any] = ()
    shape: tuple[int, ...] = (64,)
    dtype: mx.Dtype = mx.float32
    grid: Triple = (64, 1, 1)
    threadgroup: Triple = (64, 1, 1)
    template: Sequence[tuple[str, Any]] = ()
    header: str = ""
    init_value: float | None = None
    atomic_outputs: bool = False
    ensure_row_contiguous: bool = True


@dataclass(frozen=True)
class Result:
    """What a probe gave."""

    out: mx.array
    findings: list[Finding]
    launch: Launch

    @property
    def kinds(self) -> set[str]:
        """The kinds of findings."""
        return {finding.kind for finding in self.findings}


def run(probe: Probe, orders: Sequence[str] = ("forward",), max_steps: int = MAX_STEPS) -> Result:
    """Run a probe, collecting its findings."""
    names = [chr(ord("a") + i) for i in range(len(probe.inputs))]
    with installed(orders, collect=True, max_steps=max_steps) as sim:
        kernel: Any = mx.fast.metal_kernel(
            name="probe",
            input_names=names,
            output_names=["out"],
            source="uint i = thread_position_in_grid.x;" + probe.source,
            header=probe.header,
            ensure_row_contiguous=probe.ensure_row_contiguous,
            atomic_outputs=probe.atomic_outputs,
        )
        out = kernel(
            inputs=list(probe.inputs),
            template=list(probe.template),
            grid=probe.grid,
            threadgroup=probe.threadgroup,
            output_shapes=[probe.shape],
            output_dtypes=[probe.dtype],
            init_value=probe.init_value,
        )[0]
    return Result(out, sim.findings, sim.launches[-1])
