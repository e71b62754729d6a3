"""Stands in for ``mx.fast.metal_kernel``: kernels run on the CPU and are checked.

    with metal_sim.installed(orders=("forward", "reverse", "shuffled:1")) as sim:
        y = my_kernel_wrapper(x)        # unmodified code
    sim.launches[0].inputs["x"].unique_loaded

A launch with a finding raises ``MetalFinding`` at once; with ``collect=True`` findings gather in
``sim.findings`` instead. Kernels made under one simulator run under any other, never without one.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence, Sized
from types import ModuleType
from typing import Any

import mlx.core as mx

from tests.metal_sim import arrays, launch
from tests.metal_sim.counters import Launch
from tests.metal_sim.findings import Finding, MetalFinding
from tests.metal_sim.signature import TYPE_NAMES, Body, InputType, Specialisation, Template

MAX_STEPS = 20_000_000
_active: list["Simulator"] = []


class Simulator:
    """Runs launches, in several lane orders, and keeps what they did.

    ``launches`` has one record a launch (counters of the first order), ``findings`` all findings.
    """

    def __init__(self, orders: Sequence[str], collect: bool, max_steps: int) -> None:
        self.launches: list[Launch] = []
        self.findings: list[Finding] = []
        self._orders = [launch.Order.parse(order) for order in orders]
        self._collect = collect
        self._max_steps = max_steps

    def take_findings(self) -> list[Finding]:
        """The findings so far; they count as seen."""
        taken, self.findings = self.findings, []
        return taken

    def kinds(self) -> set[str]:
        """Which kinds of findings there are."""
        return {finding.kind for finding in self.findings}

    def run(self, job: launch.Job) -> list[bytes]:
        """Run a job under every order; the outputs of the first."""
        outcomes = [launch.run(job, order) for order in self._orders]
        self.launches.append(outcomes[0].launch)
        found = list({str(f): f for outcome in outcomes for f in outcome.findings}.values())
        if not found and not job.spec.body.atomic_outputs:
            found = self._differences(job, outcomes)
        self.report(found)
        return outcomes[0].outputs

    def report(self, found: list[Finding]) -> None:
        """Keep findings; raise unless they are being collected."""
        self.findings += found
        if found and not self._collect:
            raise MetalFinding(found)

    def job(self, spec: Specialisation, **parts: Any) -> launch.Job:
        """A job of this simulator."""
        return launch.Job(spec=spec, max_steps=self._max_steps, **parts)

    def _differences(self, job: launch.Job, outcomes: list[launch.Outcome]) -> list[Finding]:
        """A finding for each output that depends on the order of the lanes."""
        found = []
        for i, name in enumerate(job.spec.body.output_names):
            if len({outcome.outputs[i] for outcome in outcomes}) > 1:
                message = f"output {name} differs between lane orders"
                found.append(Finding("order_dependent", job.spec.body.name, message, buffer=name))
        return found


class Kernel:
    """What the simulated ``mx.fast.metal_kernel`` returns: a callable kernel."""

    def __init__(self, body: Body, ensure_row_contiguous: bool) -> None:
        self._body = body
        self._row_contiguous = ensure_row_contiguous

    def __call__(
        self,
        *,
        inputs: Sequence[mx.array | arrays.Scalar],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        """Run it now (MLX would when the outputs are needed)."""
        if not _active:
            raise RuntimeError("[metal_kernel] No Metal back-end.")
        if stream is not None and "cpu" in str(stream):
            raise ValueError("[metal_kernel] Only supports the GPU.")
        self._check_sizes(inputs, output_shapes, output_dtypes)
        sources = [arrays.as_array(value) for value in inputs]
        spec = Specialisation(
            self._body,
            tuple(InputType(arrays.dtype_name(a.dtype), a.ndim, a.size) for a in sources),
            tuple(arrays.dtype_name(dtype) for dtype in output_dtypes),
            Template(tuple(_template_argument(name, value) for name, value in template or ())),
        )
        if verbose:
            source = spec.source() + spec.instantiation()
            print(f"Generated source code for `{self._body.name}`:\n```\n{source}\n```")
        simulator = _active[-1]
        self._check_threads(simulator, threadgroup)
        outputs = [
            launch.Output(tuple(shape), dtype, init_value)
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        job = simulator.job(
            spec,
            inputs=tuple(arrays.to_bytes(a, self._row_contiguous) for a in sources),
            outputs=tuple(outputs),
            grid=tuple(grid),
            threadgroup=tuple(threadgroup),
        )
        made = zip(simulator.run(job), outputs, strict=True)
        return [arrays.from_bytes(data, output.shape, output.dtype) for data, output in made]

    def _check_sizes(self, inputs: Sized, shapes: Sized, dtypes: Sized) -> None:
        """Refuse wrong numbers of arguments in MLX's words."""
        body = self._body
        given = {"inputs": inputs, "output_shapes": shapes, "output_dtypes": dtypes}
        for what, value in given.items():
            expected = len(body.input_names if what == "inputs" else body.output_names)
            if len(value) != expected:
                raise ValueError(
                    f"[metal_kernel] Expected `{what}` to have size {expected} "
                    f"but got size {len(value)}."
                )

    def _check_threads(self, simulator: Simulator, threadgroup: tuple[int, int, int]) -> None:
        x, y, z = threadgroup
        if x * y * z > 1024:
            message = f"{x * y * z} threads a threadgroup, 1024 is the most"
            found = Finding("threadgroup_size", self._body.name, message)
            simulator.findings.append(found)
            raise MetalFinding([found])


def _template_argument(name: str, value: Any) -> tuple[str, str, str]:
    if isinstance(value, bool):
        return name, "bool", str(int(value))
    if isinstance(value, int):
        return name, "int", str(value)
    if isinstance(value, mx.Dtype):
        return name, "typename", TYPE_NAMES[arrays.dtype_name(value)]
    raise ValueError(
        "[metal_kernel] Invalid template argument. Must be `mlx.core.Dtype`, `int` or `bool`."
    )


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: object | None = None,
) -> Kernel:
    """As ``mx.fast.metal_kernel``; the math mode changes nothing here."""
    if not output_names:
        raise ValueError("[metal_kernel] Must specify at least one output.")
    body = Body(name, tuple(input_names), tuple(output_names), source, header, atomic_outputs)
    return Kernel(body, ensure_row_contiguous)


@contextlib.contextmanager
def installed(
    orders: Sequence[str] = ("forward",),
    *,
    collect: bool = False,
    pretend_gpu: bool = True,
    max_steps: int = MAX_STEPS,
) -> Iterator[Simulator]:
    """Let ``mx.fast.metal_kernel`` make simulated kernels, and code believe that Metal is here.

    `orders`: each launch runs once under each of ``forward``, ``reverse``, ``shuffled:<seed>``,
    and its outputs must agree bit for bit (but for atomic outputs). `collect`: keep findings
    instead of raising; the caller looks at them. `pretend_gpu`: ``mx.default_device()`` says gpu.
    `max_steps`: branches after which a thread counts as endless. Functions compiled by
    ``mx.compile`` run as plain Python inside, since a simulated kernel computes at once.
    """
    simulator = Simulator(orders, collect, max_steps)
    with contextlib.ExitStack() as undo:
        for owner, attribute, replacement in _replacements(pretend_gpu):
            undo.callback(setattr, owner, attribute, getattr(owner, attribute))
            setattr(owner, attribute, replacement)
        mx.disable_compile()
        undo.callback(mx.enable_compile)
        _active.append(simulator)
        undo.callback(_active.remove, simulator)
        yield simulator
    if simulator.findings and not collect:
        raise MetalFinding(simulator.findings)


def _replacements(pretend_gpu: bool) -> list[tuple[Any, str, Any]]:
    replaced: list[tuple[Any, str, Any]] = [
        (mx.fast, "metal_kernel", metal_kernel),
        (mx.metal, "is_available", lambda: True),
    ]
    if pretend_gpu:
        real_stream = mx.new_stream
        gpu = mx.Device(mx.gpu)
        replaced.append((mx, "default_device", lambda: gpu))
        replaced.append(
            (mx, "new_stream", lambda device: real_stream(mx.cpu if device == mx.gpu else device))
        )
    return replaced


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
