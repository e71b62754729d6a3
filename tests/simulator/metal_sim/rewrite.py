"""Two things of Metal that no C++ compiler takes as they are, rewritten before compiling.

* Vector constructors and casts: ``float4(a, b)``, ``vec<T, 2>(x)``, ``(half4)v``.
* Declarations of threadgroup memory in a kernel: ``threadgroup float sums[32];``.

Comments are blanked first; lines stay where they are, so that messages name the right ones.
"""

import re

from metal_sim.toolchain import CompileError

_ELEMENTS = "char|uchar|short|ushort|int|uint|long|ulong|half|float|bfloat"
_VECTOR = rf"(?:(?:metal::)?(?:{_ELEMENTS})[234])"
_GENERIC = r"(?:(?:metal::)?vec\s*<[^<>();]*>)"
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\])*\"", re.S)
_ALIAS = re.compile(
    rf"\busing\s+(\w+)\s*=\s*(?:{_VECTOR}|{_GENERIC})\s*;"
    rf"|\btypedef\s+(?:{_VECTOR}|{_GENERIC})\s+(\w+)\s*;"
)
_TOO_WIDE = re.compile(
    r"\b(?:device|threadgroup|constant)\s+(?:const\s+)?(?:u?long[34]|vec\s*<\s*u?(?:long|int64_t))\b"
)
_TOKEN = re.compile(r"\w+|::|[^\s\w]")


def _blank(match: re.Match[str]) -> str:
    text = match.group()
    return text if text.startswith('"') else re.sub(r"[^\n]", " ", text)


def without_comments(source: str) -> str:
    """The source with comments blanked, line for line."""
    return _COMMENT.sub(_blank, source)


def _vector_names(source: str) -> str:
    """A pattern of all names of vector types in the source, its own aliases included."""
    aliases = {name for pair in _ALIAS.findall(source) for name in pair if name}
    own = "|".join(sorted(aliases, key=len, reverse=True))
    return rf"(?:{_VECTOR}|{_GENERIC}" + (rf"|{own})" if own else ")")


def vectors(source: str) -> str:
    """Rewrite constructors and casts of vectors."""
    names = _vector_names(source)
    before = r"(?<![\w:<.])(?<!operator )"
    source = re.sub(rf"\bstatic_cast\s*<\s*({names})\s*>\s*\(", r"sim_make<\1>(", source)
    source = re.sub(rf"(?<![\w\]>])\(\s*({names})\s*\)\s*(?=[\w(])", r"sim_cast<\1>()->*", source)
    return re.sub(rf"{before}({names})\s*\(", r"sim_make<\1>(", source)


class _Scanner:
    """The tokens after a position, with the places where they end."""

    def __init__(self, text: str, at: int) -> None:
        self.tokens = _TOKEN.finditer(text, at)

    def declaration(self) -> tuple[int, str] | None:
        """Read up to the ';' of a declaration: (its end, its text); None for anything else."""
        angle = 0
        words: list[str] = []
        for match in self.tokens:
            token = match.group()
            angle += (token == "<") - (token == ">")
            if angle == 0 and token in "*&(){}":
                return None
            if token == ";":
                return match.end(), " ".join(words)
            if angle == 0 and token == "[":
                return self._after_bracket(words)
            words.append(token)
        return None

    def _after_bracket(self, words: list[str]) -> tuple[int, str] | None:
        """The rest, once an extent has begun: everything up to ';' outside brackets."""
        parts, depth = [*words, "["], 1
        for match in self.tokens:
            token = match.group()
            depth += (token == "[") - (token == "]")
            if depth == 0 and token == ";":
                return match.end(), " ".join(parts)
            if depth == 0 and token in "){":
                return None  # a parameter: void f(threadgroup float sums[32])
            parts.append(token)
        return None


def _split(declarators: str) -> list[str]:
    """Parts between the commas outside brackets."""
    parts, depth = [""], 0
    for character in declarators:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _name_first(declaration: str) -> tuple[str, list[str]] | None:
    """(type, declarators) of ``float sums [ 32 ] , all``."""
    head = _split(declaration)[0]
    bare = head.split("[")[0].rstrip()
    if " " not in bare:
        return None
    kind, name = bare.rsplit(" ", 1)
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        return None
    return kind, _split(declaration[len(kind) :])


def threadgroup_memory(source: str) -> str:
    """Rewrite declarations of threadgroup memory; qualifiers of pointers stay."""
    out, at, key = "", 0, 0
    for match in re.finditer(r"\bthreadgroup\b(?!\s*\()", source):
        if match.start() < at:
            continue
        scanned = _Scanner(source, match.end()).declaration()
        parsed = _name_first(scanned[1]) if scanned else None
        if scanned is None or parsed is None:
            continue
        kind, declarators = parsed
        macros = []
        for declarator in declarators:
            name, bracket, extent = declarator.partition("[")
            key += 1
            macros.append(f"SIM_THREADGROUP({key}, {name.strip()}, {bracket}{extent}, {kind});")
        lines = source.count("\n", match.start(), scanned[0])
        out += source[at : match.start()] + " ".join(macros) + "\n" * lines
        at = scanned[0]
    return out + source[at:]


def rewrite(source: str) -> str:
    """Metal to C++: what the compiler takes with the headers of ``include/``.

    Refuses vectors of 8-byte elements in shared memory: the instrumentation sees no access wider
    than 16 bytes, and an unseen one would pass as sound.
    """
    clean = without_comments(source)
    if wide := _TOO_WIDE.search(clean):
        raise CompileError(f"[metal_sim] {wide.group()}: accesses over 16 bytes are not simulated")
    return threadgroup_memory(vectors(clean))
