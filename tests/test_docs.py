"""What the documents name is there: public names, protocols, terms. That what they show runs is
``test_snippets``, that links lead somewhere ``test_site``."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import xml.etree.ElementTree
from pathlib import Path

import pytest

import mlx_spec
import mlx_spec.pipeline
from mlx_spec.cache.layer import LayerCache
from mlx_spec.errors import MlxSpecError
from mlx_spec.life_cycle import RequestState

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CACHES = (ROOT / "docs" / "caches.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TERMS = (ROOT / "docs" / "terms.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SNIPPETS = [text for language, text in BLOCKS if language == "python"]
WEB = (ROOT / "examples" / "web.py").read_text(encoding="utf-8")


def imported(source: str, module: str = "mlx_spec") -> list[str]:
    """The names that a piece of Python takes from a module of ours."""
    nodes = ast.walk(ast.parse(source))
    ours = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module == module]
    return [alias.name for node in ours for alias in node.names]


@pytest.mark.parametrize("source", [*SNIPPETS, WEB])
def test_the_python_that_is_shown_imports_public_names(source: str) -> None:
    names = imported(source)
    assert names
    assert set(names) <= set(mlx_spec.__all__)


def test_stages_of_one_s_own_need_public_names_only() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = imported(source, "mlx_spec.pipeline")
    assert names
    assert set(names) <= set(mlx_spec.pipeline.__all__)


def test_the_api_page_names_all_there_is() -> None:
    table = "\n".join(line for line in API.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`(\w+)[`(]", table))
    errors = {name for name in mlx_spec.__all__ if name != "MlxSpecError"}
    assert errors <= named
    assert issubclass(mlx_spec.PromptTooLong, mlx_spec.InvalidRequest)
    assert issubclass(mlx_spec.InvalidRequest, (MlxSpecError, ValueError))


def test_the_cache_that_is_shown_is_the_one_that_is_tested() -> None:
    toy = ROOT / "tests" / "toys" / "every_second.py"
    source = toy.read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(.*?)```", CACHES, re.DOTALL)
    shown_class, registered = shown.rsplit("\n\n\n", 1)
    assert shown_class in source
    assert registered in source
    assert f"{len(source.splitlines())} lines" in CACHES
    for name in re.findall(r"tests/[\w/]+\.py", CACHES):
        assert (ROOT / name).exists(), name


def test_the_cache_page_names_the_whole_protocol() -> None:
    asked = {name for name in vars(LayerCache) if not name.startswith("_")}
    asked |= set(LayerCache.__annotations__)
    assert asked <= set(re.findall(r"\w+", CACHES))


def test_the_path_of_a_request_names_what_is_there() -> None:
    (path,) = re.findall(r"\n## The path of a request\n(.*?)\n## ", ARCHITECTURE, re.DOTALL)
    names = re.findall(r"`([a-z]\w*(?:\.\w+)+)`", path)
    assert len(names) > 30
    for name in names:
        if not (ROOT / f"mlx_spec/{name.replace('.', '/')}").with_suffix(".py").exists():
            assert callable(pkgutil.resolve_name(f"mlx_spec.{name}")), name
    states = re.findall(r"\*(\w+)[.*]", path)
    assert {state.lower() for state in states} >= {"waiting", "prefilling", "running", "finished"}


PAGES = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guide").glob("*.md")]
PAST = {"LOG.md"}  # what was tried, and may be gone
FOLDERS = ("docs", "examples", "metal_kernels", "mlx_spec", "scripts", "tests")


def test_the_files_that_pages_name_are_there() -> None:
    paths = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
    there = {f"/{path.relative_to(ROOT).as_posix()}" for path in paths}
    pages = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
    named = {
        (page.name, name)
        for page in pages
        if page.name not in PAST
        for name in re.findall(
            r"`((?:\w+/)+[\w.]+\.(?:py|md|sh|toml|metal|jsonl))`", page.read_text(encoding="utf-8")
        )
    }
    assert len(named) > 80
    assert [one for one in named if not any(path.endswith(f"/{one[1]}") for path in there)] == []


def test_each_term_is_there_once() -> None:
    words = [
        word.strip()
        for line in TERMS.splitlines()
        if line.startswith("| ") and not line.startswith("| word")
        for word in line.split("|")[1].split(",")
    ]
    assert len(words) > 80
    assert len(set(words)) == len(words)
    assert {state.value for state in RequestState} <= set(words)


def test_the_picture_is_what_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``python scripts/picture.py`` where this fails."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    picture = importlib.import_module("picture")
    rows = json.loads((ROOT / "docs" / "picture.json").read_text(encoding="utf-8"))["rows"]
    drawn = picture.draw(rows)
    assert drawn == (ROOT / "docs" / "picture.svg").read_text(encoding="utf-8")
    assert xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "prefers-color-scheme: dark" in drawn
    shown = {token["by"] for row in rows for one in row["passes"] for token in one}
    assert shown == {"own", "ngram", "head"}


@pytest.mark.parametrize("room", ["", "batching", "cache", "control", "decoding", "model"])
def test_the_picture_of_the_house_has_every_module_of_its_core(room: str) -> None:
    """Stops a file that nobody finds, and one that has gone and is still described."""
    listing = ARCHITECTURE[ARCHITECTURE.index("```text\nmlx_spec/") :].split("```")[1]
    pattern = rf"\n  {room}/ +(.*(?:\n {{21}}.*)*)" if room else r"mlx_spec/\n((?:.*\n)*?)  cache/"
    found = re.search(pattern, listing)
    assert found is not None
    names = {path.stem for path in (ROOT / "mlx_spec" / room).glob("*.py")}
    assert names - set(re.findall(r"\w+", found[1])) <= {"__init__", "__main__"}
