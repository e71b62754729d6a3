"""A Metal simulator for tests: kernels of ``mx.fast.metal_kernel`` run on the CPU, checked.

See README.md beside this file.
"""

from metal_sim.counters import Launch, Traffic
from metal_sim.findings import Finding, MetalFinding
from metal_sim.install import fresh_module, installed
from metal_sim.simulator import Simulator
from metal_sim.toolchain import CompileError, skip_unless_available, unavailable

__all__ = [
    "CompileError",
    "Finding",
    "Launch",
    "MetalFinding",
    "Simulator",
    "Traffic",
    "fresh_module",
    "installed",
    "skip_unless_available",
    "unavailable",
]
