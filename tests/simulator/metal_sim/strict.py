"""What Apple's compiler refuses and clang for a CPU does not: three more looks at the source.

* ``address_space``: compiled again, syntax only, with device, constant and threadgroup as real
  address spaces, so that pointers of different memories do not mix.
* ``address_space``: pointers and references of a plain type that name no address space at all.
* ``implicit_bfloat``: compiled again with a bfloat into which float and half do not turn by
  themselves.

Only complaints about these things count, since the passes refuse some valid Metal too (a class
copied out of device memory, array parameters).
"""

import json
import re
from dataclasses import dataclass

from metal_sim import toolchain
from metal_sim.findings import Finding
from metal_sim.rewrite import rewrite, without_comments
from metal_sim.signature import Specialisation

_DIAGNOSTIC = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):\d+: (?P<level>error|note): (?P<text>.*)$"
)
_BFLOAT = re.compile(r"no viable (conversion|overloaded)|no matching (function|conversion)")
_TOLERATED = re.compile(
    r"parameter may not be qualified with an address space|'this' object is in address space"
)
_SPACES = r"device|constant|threadgroup|thread|threadgroup_imageblock"
_SCALARS = (
    r"(?:(?:packed_)?(?:bool|u?char|u?short|u?int|u?long|half|float|bfloat)[234]?"
    r"|u?int(?:8|16|32|64)_t|size_t|bfloat16_t|float16_t)"
)


@dataclass(frozen=True)
class Diagnostic:
    """An error of the compiler, with all its notes."""

    file: str
    line: int
    text: str
    whole: str


def _diagnostics(stderr: str) -> list[Diagnostic]:
    found: list[Diagnostic] = []
    for match in filter(None, map(_DIAGNOSTIC.match, stderr.splitlines())):
        if match["level"] == "error":
            found.append(
                Diagnostic(match["file"], int(match["line"]), match["text"], match["text"])
            )
        elif found:
            last = found[-1]
            whole = f"{last.whole}\n{match['text']}"
            found[-1] = Diagnostic(last.file, last.line, last.text, whole)
    return found


def _syntax_pass(spec: Specialisation, source: str, macro: str) -> list[Diagnostic]:
    """Errors in the kernel's own source under one of the strict modes."""
    name = f"{spec.function}{spec.template.values}"
    text = f"{source}\nauto* sim_use = &{name};\n"
    flags = [*toolchain.kernel_flags(f"-D{macro}"), "-fsyntax-only", "-fno-caret-diagnostics"]
    stderr = toolchain.check(text, [*flags, "-ferror-limit=0"])
    return [d for d in _diagnostics(stderr) if d.file in ("header", spec.body.name)]


def _unqualified(spec: Specialisation) -> list[tuple[str, int, str]]:
    """(file, line, declaration) of pointers and references without an address space."""
    found = []
    typenames = [name for name, kind, _ in spec.template.arguments if kind == "typename"]
    for file, text in (("header", spec.body.header), (spec.body.name, spec.body.source)):
        clean = without_comments(text)
        named = typenames + re.findall(r"\b(?:typename|class)\s+(\w+)", clean)
        types = "|".join([_SCALARS, *map(re.escape, named)])
        pattern = rf"(?P<before>[\w\s]*)\b(?:{types})\s*(?:const\s*)?[*&](?!&)\s*(?=[A-Za-z_])"
        for match in re.finditer(pattern, clean):
            declared = match.group()
            if re.search(rf"\b(?:{_SPACES})\b", declared):
                continue
            at = match.end("before")
            word = clean[at : clean.find("\n", at)].strip()
            found.append((file, clean.count("\n", 0, at) + 1, word))
    return found


def _look(spec: Specialisation, source: str) -> list[Finding]:
    kernel = spec.body.name
    found = [
        Finding("address_space", kernel, f"a pointer or reference names no address space: {word}",
                line=f"{file}:{line}")
        for file, line, word in _unqualified(spec)
    ]  # fmt: skip
    for d in _syntax_pass(spec, source, "SIM_ADDRESS_SPACES"):
        if not _TOLERATED.search(d.whole):
            found.append(Finding("address_space", kernel, d.text, line=f"{d.file}:{d.line}"))
    if "bfloat" in source:
        for d in _syntax_pass(spec, source, "SIM_STRICT_BFLOAT"):
            if _BFLOAT.search(d.text) and "bfloat" in d.whole:
                found.append(Finding("implicit_bfloat", kernel, d.text, line=f"{d.file}:{d.line}"))
    return found


def look(spec: Specialisation) -> list[Finding]:
    """Everything Apple's compiler would refuse in this specialisation; kept in the cache."""
    source = rewrite(spec.source(line_marks=True))
    place = toolchain.place(source, [], f"{spec.body.name}-strict", ".json")
    if place.exists():
        return [Finding(**fields) for fields in json.loads(place.read_text())]
    found = list(dict.fromkeys(_look(spec, source)))
    toolchain.keep(place, json.dumps([vars(finding) for finding in found]))
    return found
