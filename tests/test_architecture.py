"""The order of the layers, read from the imports: dependencies point right, never back.

    cli -> server, training, bench -> pipeline, metrics -> api -> batching -> decoding -> model
    -> cache, control, structured, metal_kernels

``errors, config, load_config, chunks, results, sequence, events, interrupts, display, text_files,
kept_file, platform, blas`` import none of the folders and may be imported by all. Imports for types
count, and no module imports itself by way of others.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mlx_spec
from tests.quick import NOT_QUICK

ROOT = Path(mlx_spec.__file__).parent
LAYERS = [
    {"cache", "control", "metal_kernels", "structured"},
    {"model"},
    {"decoding"},
    {"batching"},
    {"api"},
    {"pipeline", "metrics"},
    {"bench", "server", "training"},
    {"cli"},
    {"__main__"},
]
COMMON = {
    "blas",
    "block_keys",
    "chunks",
    "config",
    "display",
    "drafting",
    "errors",
    "events",
    "flags",
    "interrupts",
    "kept_file",
    "life_cycle",
    "load_config",
    "platform",
    "results",
    "row_limit",
    "sequence",
    "text_files",
    "token_bytes",
    "weak_memo",
}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
SOURCES = sorted(
    path
    for folder in ("mlx_spec", "metal_kernels", "tests", "scripts", "examples")
    for path in (ROOT.parent / folder).rglob("*.py")
)
MOST_LINES, MOST_OF_A_FUNCTION = 350, 50
# typer and Python call these; users' rules and tests need the last two.
CALLED_BY_OTHERS = {
    "_close_all",
    "_root",
    "format_commands",
    "format_options",
    "get_short_help_str",
    "list_commands",
}
CALLED_BY_OTHERS |= {"get_route_handler", "send_400_response"}  # by FastAPI and uvicorn
# By Ray Data.
CALLED_BY_OTHERS |= {"estimate_inmemory_data_size", "get_read_tasks", "supports_distributed_reads"}
CALLED_BY_OTHERS |= {"_end_all"}  # at exit
CALLED_BY_OTHERS |= {"gumbel_noise", "previous"}
CALLED_BY_OTHERS |= {"maybe_trim_front"}  # by mlx-lm's llama4


def room(path: Path) -> str:
    """The layer or common module that a file belongs to."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


@cache
def parsed(path: Path) -> ast.Module:
    """A file's statements; every test asks for all files."""
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """The full name of a module of ours, a package's own for its ``__init__``."""
    parts = ["mlx_spec", *path.with_suffix("").parts]
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def with_module(name: str) -> str | None:
    """The module of ours that holds a name, the longest that exists; None for others' names."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def with_packages(name: str) -> set[str]:
    """The module that holds a name, and the packages that it lies in: what importing it runs."""
    found = with_module(name)
    parts = found.split(".") if found else []
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def imports(path: Path, run: bool = False) -> Iterator[str]:
    """Full names of what a file imports, for its types too; with ``run`` only those that importing
    the file runs."""
    tree = parsed(ROOT / path)
    for node in _statements(tree) if run else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # "from mlx_spec import platform" names a module too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a file is imported: nothing for types only, and no function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield child
        yield from _statements(child)


def our_rooms(path: Path) -> set[str]:
    """The rooms of ours that a file imports from."""
    names = [name.split(".") for name in imports(path)]
    rooms = {name[1] for name in names if name[0] == "mlx_spec" and len(name) > 1}
    return rooms | {"metal_kernels" for name in names if name[0] == "metal_kernels"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_dependencies_point_right(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "demo_models"):  # the public names: resolved lazily, by string
        return
    for other in our_rooms(path) - COMMON - {here, "__version__"}:
        assert other in RANK, f"{path} imports mlx_spec.{other}, which has no layer"
        assert here in RANK, f"{path}: {here} is common and must not import {other}"
        assert RANK[other] < RANK[here], f"{path} ({here}) imports {other}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in COMMON], ids=str)
def test_common_modules_import_no_folder(path: Path) -> None:
    assert our_rooms(path) - {"__version__"} <= COMMON
    if room(path) != "platform":  # whose describe() asks mlx for its device
        assert not [name for name in imports(path) if name.split(".")[0] in ("mlx", "mlx_lm")]


def test_metal_kernels_is_a_leaf() -> None:
    """It knows mlx and nothing of ours; its sources travel with it."""
    folder = ROOT.parent / "metal_kernels"
    for path in folder.rglob("*.py"):
        names = {name.split(".")[0] for name in imports(path)}
        assert names <= {"metal_kernels", "mlx", *sys.stdlib_module_names}, path
    assert len(list(folder.glob("*.metal"))) == 4


def test_control_is_pure_python() -> None:
    """Policies run between two works of the device and are played on simulated hardware: they
    import the standard library and a few plain modules of ours, and so does what those import.
    """
    plain = {"config", "errors", "results", "weak_memo"}
    names = []
    for path in FILES:
        if room(path) == "control":
            names.append(".".join(("mlx_spec", *path.with_suffix("").parts)))
            ours = {name for name in imports(path) if name.startswith("mlx_spec.")}
            assert {name.split(".")[1] for name in ours} <= {"control", *plain}, path
            others = {name.split(".")[0] for name in set(imports(path)) - ours}
            assert others <= set(sys.stdlib_module_names), path
    found = subprocess.run(
        [sys.executable, "-c", f"import sys, {', '.join(names)}; print(*sys.modules)"],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    loaded = {name.split(".")[1] for name in found if name.startswith("mlx_spec.")}
    assert loaded <= {"control", *plain}
    assert not {"mlx", "mlx_lm", "numpy"} & set(found)


def test_the_simulator_is_a_package_of_its_own() -> None:
    """``metal_sim`` knows mlx and nothing of ours; pytest only to skip a module of tests."""
    packages = {"metal_sim", "mlx", "numpy", "elftools", *sys.stdlib_module_names}
    files = sorted((Path(__file__).parent / "simulator" / "metal_sim").rglob("*.py"))
    assert len(files) > 10
    for path in files:
        at_once = {name.split(".")[0] for name in imports(path, run=True)}
        assert at_once <= packages, path
        assert {name.split(".")[0] for name in imports(path)} <= {*packages, "pytest"}, path


@pytest.mark.parametrize("path", FILES, ids=str)
def test_mlx_comes_after_the_blas(path: Path) -> None:
    """A file that imports mlx at once lies in a package whose ``__init__`` loads the BLAS."""
    if not any(name.split(".")[0] in ("mlx", "mlx_lm") for name in imports(path, run=True)):
        return
    packages = [ROOT / folder / "__init__.py" for folder in path.parents if folder.parts]
    assert any("\nensure_blas()\n" in file.read_text() for file in packages), (
        f"{path}: imports mlx, but no package loads the BLAS before it"
    )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_private_name_of_mlx_lm_is_touched(path: Path) -> None:
    names = [name.split(".") for name in imports(path) if name.startswith("mlx_lm")]
    assert not [name for name in names if any(part.startswith("_") for part in name)]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(parsed(ROOT / path)), path


def test_help_needs_nothing_heavy() -> None:
    """What the command line imports at once, and what that imports: typer and nothing else."""
    left = [name_of(path) for path in FILES if room(path) in ("cli", "__main__")]
    seen = set(left)
    while left:
        path = MODULES[left.pop()]
        for name in imports(path, run=True):
            if name.split(".")[0] == "mlx_spec":
                new = with_packages(name) - seen
                seen |= new
                left += new
            else:
                assert name.split(".")[0] in {"typer", *sys.stdlib_module_names}, path


def test_no_import_circle() -> None:
    """No module needs itself, for its types neither; the package's face alone shows them all."""
    needs = {
        name: {with_module(other) for other in imports(path)} - {name}
        for name, path in MODULES.items()
        if name != "mlx_spec"
    }
    while True:
        # What needs nothing that is left, or is needed by nobody, can be in no circle.
        needed = set().union(*needs.values())
        in_middle = {
            name: others & needs.keys()
            for name, others in needs.items()
            if others & needs.keys() and name in needed
        }
        if in_middle == needs:
            break
        needs = in_middle
    assert not needs


def test_files_and_functions_are_small() -> None:
    """A file is read at one sitting, a function on one screen (what it says of itself apart)."""
    large = []
    for path in SOURCES:
        text, place = path.read_text(encoding="utf-8"), path.relative_to(ROOT.parent)
        if (lines := len(text.splitlines())) > MOST_LINES:
            large.append(f"{place}: {lines} lines")
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(parsed(path)):
            if isinstance(node, functions) and (lines := lines_of(node)) >= MOST_OF_A_FUNCTION:
                large.append(f"{place}: {node.name}: {lines} lines")
    assert large == []


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is None:
        return lines
    return lines - ((first.end_lineno or 0) - first.lineno + 1)


def test_most_files_are_short() -> None:
    lengths = [len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in FILES]
    assert statistics.median(lengths) <= 125


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in (path.relative_to(ROOT.parent) for path in SOURCES):
        if path.parts[0] in ("mlx_spec", "metal_kernels"):
            for node in parsed(ROOT.parent / path).body:
                if isinstance(node, ast.ClassDef):
                    places[node.name.lstrip("_")].append(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def _is_called_by_others(name: str) -> bool:
    return name in CALLED_BY_OTHERS or (name.startswith("__") and name.endswith("__"))


def test_what_is_defined_is_used() -> None:
    """Not by tests alone: what only they call goes. A name in a page for users counts as used."""
    folders = ("mlx_spec", "metal_kernels", "scripts", "examples", "docs")
    files = [path for folder in folders for path in (ROOT.parent / folder).rglob("*.*")]
    pages = [p for p in files if p.suffix in (".py", ".md", ".ipynb") and p.name != "LOG.md"]
    texts = [path.read_text(encoding="utf-8") for path in [*pages, ROOT.parent / "README.md"]]
    known = Counter(word for text in texts for word in re.findall(r"\w+", text))
    unused = []
    for path in SOURCES:
        if path.is_relative_to(ROOT) or path.parent.name == "metal_kernels":
            for node in ast.walk(parsed(path)):
                named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
                if named and known[node.name] < 2 and not _is_called_by_others(node.name):
                    unused.append(f"{path.relative_to(ROOT.parent)}: {node.name}")
    assert unused == []


def test_what_quick_leaves_out_exists() -> None:
    """A test that was renamed would run in ``--quick`` again, unseen."""
    for name in NOT_QUICK:
        file, _, test = name.partition("::")
        paths = list(Path(__file__).parent.glob(f"{file}*"))
        assert paths, name
        assert any(f"\ndef {test}" in path.read_text(encoding="utf-8") for path in paths), name
