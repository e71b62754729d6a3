"""The Metal source that ``mx.fast.metal_kernel`` makes of a kernel's body, and an entry to call it.

Follows MLX (``mlx/backend/common/metal_kernel.cpp``): inputs of fewer than 8 elements are passed
in the constant address space, 0-d ones by reference; ``_shape``, ``_strides``, ``_ndim`` and the
thread attributes appear only where the body mentions them.
"""

from dataclasses import dataclass

MAX_CONSTANT_SIZE = 8

# Metal's name of a dtype, by mlx's name.
TYPE_NAMES = {
    "float32": "float",
    "float16": "float16_t",
    "bfloat16": "bfloat16_t",
    "complex64": "complex64_t",
    "bool": "bool",
    **{f"{u}int{bits}": f"{u}int{bits}_t" for u in ("", "u") for bits in (8, 16, 32, 64)},
}

ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}


@dataclass(frozen=True)
class InputType:
    """What the signature needs to know of an input.

    ``scalar``: 0-d, passed by reference; ``constant``: in the constant address space.
    """

    dtype: str
    scalar: bool
    constant: bool


@dataclass(frozen=True)
class Body:
    """A kernel as its author wrote it."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str = ""
    atomic_outputs: bool = False

    def mentions(self, input_name: str, info: str) -> bool:
        """Whether the body speaks of an input's shape, strides or ndim."""
        return f"{input_name}_{info}" in self.source


@dataclass(frozen=True)
class Buffer:
    """One parameter of the kernel that stands for memory.

    ``kind`` is input, output, shape, strides or ndim; ``index`` numbers inputs and outputs.
    """

    name: str
    kind: str
    index: int
    type: str
    reference: bool
    space: str

    def declaration(self, position: int) -> str:
        """The parameter as Metal spells it."""
        const = "" if self.kind == "output" else "const "
        mark = "&" if self.reference else "*"
        return f"  {const}{self.space} {self.type}{mark} {self.name} [[buffer({position})]]"


@dataclass(frozen=True)
class Template:
    """Template arguments: (name, "typename" | "int" | "bool", text)."""

    arguments: tuple[tuple[str, str, str], ...] = ()

    @property
    def parameters(self) -> str:
        """``template <typename T, int D>``, empty without arguments."""
        if not self.arguments:
            return ""
        listed = ", ".join(f"{kind} {name}" for name, kind, _ in self.arguments)
        return f"template <{listed}>\n"

    @property
    def values(self) -> str:
        """``<float, 128>``, empty without arguments."""
        if not self.arguments:
            return ""
        return "<" + ", ".join(text for _, _, text in self.arguments) + ">"

    @property
    def hash(self) -> str:
        """The part of the kernel's name that tells specialisations apart."""
        return "_" + self.values[:-1].replace(", ", "_").replace("<", "_") if self.values else ""


@dataclass(frozen=True)
class Specialisation:
    """A body with the types it is launched with: what is compiled, once."""

    body: Body
    inputs: tuple[InputType, ...]
    output_dtypes: tuple[str, ...]
    template: Template

    @property
    def function(self) -> str:
        """The generated function's name."""
        parts = ["custom_kernel_" + self.body.name + self.template.hash]
        for info in self.inputs:
            short = "s" if info.scalar else "c" if info.constant else ""
            parts.append(TYPE_NAMES[info.dtype] + short)
        return "_".join([*parts, *(TYPE_NAMES[dtype] for dtype in self.output_dtypes)])

    def buffers(self) -> list[Buffer]:
        """All memory parameters in order."""
        found = []
        for i, (name, info) in enumerate(zip(self.body.input_names, self.inputs, strict=True)):
            space = "constant" if info.constant else "device"
            kind = TYPE_NAMES[info.dtype]
            found.append(Buffer(name, "input", i, kind, info.scalar, space))
            if info.scalar:
                continue
            for extra, type_name in (("shape", "int"), ("strides", "int64_t"), ("ndim", "int")):
                if self.body.mentions(name, extra):
                    reference = extra == "ndim"
                    found.append(
                        Buffer(f"{name}_{extra}", extra, i, type_name, reference, "constant")
                    )
        for i, (name, dtype) in enumerate(
            zip(self.body.output_names, self.output_dtypes, strict=True)
        ):
            kind = TYPE_NAMES[dtype]
            kind = f"atomic<{kind}>" if self.body.atomic_outputs else kind
            found.append(Buffer(name, "output", i, kind, False, "device"))
        return found

    def attributes(self) -> list[tuple[str, str]]:
        """The thread attributes the body mentions: (name, type)."""
        return [(name, kind) for name, kind in ATTRIBUTES.items() if name in self.body.source]

    def source(self, line_marks: bool = False) -> str:
        """The generated Metal source; with line marks, errors name lines of header and body."""
        parameters = [b.declaration(i) for i, b in enumerate(self.buffers())]
        parameters += [f"  {kind} {name} [[{name}]]" for name, kind in self.attributes()]
        head = '#line 1 "header"\n' if line_marks else ""
        body = f'\n#line 1 "{self.body.name}"\n' if line_marks else ""
        return (
            f"{head}{self.body.header}{self.template.parameters}[[kernel]] void {self.function}(\n"
            + ",\n".join(parameters)
            + f") {{\n{body}{self.body.source}\n}}\n"
        )

    def instantiation(self) -> str:
        """The line by which Metal makes a templated kernel callable."""
        if not self.template.arguments:
            return ""
        full = self.function + self.template.values
        return f'\ntemplate [[host_name("{self.function}")]] [[kernel]] decltype({full}) {full};\n'

    def entry(self) -> str:
        """C++ that calls the kernel for one thread, with the addresses of its buffers."""
        passed = []
        for i, buffer in enumerate(self.buffers()):
            const = "" if buffer.kind == "output" else "const "
            star = "*" if buffer.reference else ""
            passed.append(f"{star}({const}{buffer.type}*)buffers[{i}]")
        for name, kind in self.attributes():
            lanes = ", ".join(f"at->{name}[{i}]" for i in range(3))
            passed.append(f"uint3{{{lanes}}}" if kind == "uint3" else f"at->{name}")
        call = f"{self.function}{self.template.values}({', '.join(passed)});"
        return (
            'extern "C" SIM_QUIET __attribute__((visibility("default")))\n'
            f"void sim_entry(void* const* buffers, const SimThread* at) {{\n  {call}\n}}\n"
        )
