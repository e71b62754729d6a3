"""Puts the simulator in the place of ``mx.fast.metal_kernel``.

    with metal_sim.installed(orders=("forward", "reverse", "shuffled:1")) as sim:
        y = my_kernel_wrapper(x)        # unmodified code
    sim.launches[0].inputs["x"].unique_loaded

A launch with a finding raises ``MetalFinding`` at once; with ``collect=True`` findings gather in
``sim.findings`` instead. Kernels made under one simulator run under any other, never without one.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import mlx.core as mx

from metal_sim.findings import MetalFinding
from metal_sim.kernel import metal_kernel
from metal_sim.simulator import Simulator, active

MAX_STEPS = 20_000_000


@contextlib.contextmanager
def installed(
    orders: Sequence[str] = ("forward",),
    *,
    collect: bool = False,
    pretend_gpu: bool = True,
    max_steps: int = MAX_STEPS,
) -> Iterator[Simulator]:
    """Let ``mx.fast.metal_kernel`` make simulated kernels, and code believe that Metal is here.

    `orders`: each launch runs once under each of ``forward``, ``reverse``, ``shuffled:<seed>``
    (odd seeds also begin with the last threadgroup), and its outputs must agree bit for bit
    (unless it uses atomics). `collect`: keep findings instead of raising; the caller looks at
    them. `pretend_gpu`: ``mx.default_device()`` says gpu.
    `max_steps`: branches after which a thread counts as endless. Functions compiled by
    ``mx.compile`` run as plain Python inside, since a simulated kernel computes at once.
    """
    simulator = Simulator(orders, collect, max_steps)
    with contextlib.ExitStack() as undo:
        for owner, attribute, replacement in _replacements(pretend_gpu):
            undo.callback(setattr, owner, attribute, getattr(owner, attribute))
            setattr(owner, attribute, replacement)
        if not active:
            mx.disable_compile()
            undo.callback(mx.enable_compile)
        active.append(simulator)
        undo.callback(active.remove, simulator)
        yield simulator
    if simulator.findings and not collect:
        raise MetalFinding(simulator.findings)


def _replacements(pretend_gpu: bool) -> list[tuple[Any, str, Any]]:
    replaced: list[tuple[Any, str, Any]] = [
        (mx.fast, "metal_kernel", metal_kernel),
        (mx.metal, "is_available", lambda: True),
    ]
    if pretend_gpu:
        gpu = mx.Device(mx.gpu)
        replaced.append((mx, "default_device", lambda: gpu))
        for name in ("new_stream", "new_thread_unsafe_stream"):
            replaced.append((mx, name, _on_the_cpu(getattr(mx, name))))
    return replaced


def _on_the_cpu(make_stream: Any) -> Any:
    """A function that makes streams, with the CPU in the place of a GPU that is none."""
    return lambda device: make_stream(mx.cpu if device == mx.gpu else device)


def fresh_module(name: str) -> ModuleType:
    """A private copy of an installed module, whose kernels are made by the active simulator.

    For modules that make their kernels when they are imported; ``sys.modules`` stays as it is.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"[metal_sim.fresh_module] {name} is not installed")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    spec.loader.exec_module(module)
    if before is not None:
        sys.modules[name] = before
    return module
