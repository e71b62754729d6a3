"""The stand-in for ``mx.fast.metal_kernel``: same arguments, same errors, run at once."""

from collections.abc import Sequence, Sized
from typing import Any

import mlx.core as mx

from metal_sim import arrays, launch
from metal_sim.findings import Finding, MetalFinding
from metal_sim.signature import (
    MAX_CONSTANT_SIZE,
    TYPE_NAMES,
    Body,
    InputType,
    Specialisation,
    Template,
)
from metal_sim.simulator import active


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
        if not active:
            raise RuntimeError("[metal_kernel] No Metal back-end.")
        if stream is not None and "cpu" in str(stream):
            raise ValueError("[metal_kernel] Only supports the GPU.")
        self._check_sizes(inputs, output_shapes, output_dtypes)
        sources = [arrays.as_array(value) for value in inputs]
        spec = self._specialise(sources, output_dtypes, template or ())
        if verbose:
            source = spec.source() + spec.instantiation()
            print(f"Generated source code for `{self._body.name}`:\n```\n{source}\n```")
        self._check_threads(grid, threadgroup)
        outputs = [
            launch.Output(tuple(shape), dtype, init_value)
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        dispatch = launch.Dispatch(
            spec,
            inputs=tuple(arrays.to_bytes(a, self._row_contiguous) for a in sources),
            outputs=tuple(outputs),
            grid=grid,
            threadgroup=threadgroup,
        )
        made = zip(active[-1].run(dispatch), outputs, strict=True)
        return [arrays.from_bytes(data, output.shape, output.dtype) for data, output in made]

    def _specialise(
        self,
        inputs: Sequence[mx.array],
        output_dtypes: Sequence[mx.Dtype],
        template: Sequence[tuple[str, Any]],
    ) -> Specialisation:
        """The body with the types of this launch."""
        return Specialisation(
            self._body,
            tuple(
                InputType(arrays.dtype_name(a.dtype), a.ndim == 0, a.size < MAX_CONSTANT_SIZE)
                for a in inputs
            ),
            tuple(arrays.dtype_name(dtype) for dtype in output_dtypes),
            Template(tuple(_template_argument(name, value) for name, value in template)),
        )

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

    def _check_threads(self, grid: launch.Triple, threadgroup: launch.Triple) -> None:
        name = self._body.name
        if min(*grid, *threadgroup) < 1:
            raise ValueError(f"[metal_kernel] {name}: grid {grid}, threadgroup {threadgroup}")
        x, y, z = threadgroup
        if x * y * z > 1024:
            message = f"{x * y * z} threads a threadgroup, 1024 is the most"
            found = Finding("threadgroup_size", name, message)
            active[-1].findings.append(found)
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
