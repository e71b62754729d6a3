"""Hooks of ``mkdocs.yml``: pages are read on GitHub and on the site, with the same links.

Some lead out of ``docs/``, to an example or to a README beside the code. On the site such a file
lies below ``source/``, by its place in the repository: Markdown as a page, anything else as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Pages that the navigation has beside those in docs/; links lead to all others.
BESIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    "mlx_spec/demo_models/README.md",
    "mlx_spec/demo_models/smollm2_draft/README.md",
    "tests/simulator/README.md",
)
LINK = re.compile(r"(?<=\]\()(?!\w+:|[#/])([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add what links lead to outside of ``docs/``, and what those pages lead to in turn."""
    own = [page for page in files.documentation_pages() if page.abs_src_path]
    waiting = [ROOT / name for name in BESIDE] + [Path(page.abs_src_path or "") for page in own]
    known: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in known:
            continue
        known.add(path)
        if not path.is_relative_to(DOCS):
            address = _address(path)
            files.append(File.generated(config, address, abs_src_path=str(path)))
        if path.suffix == ".md":
            found = (target for _, target in _links(path.read_text(encoding="utf-8"), path))
            waiting += [target for target in found if not target.is_relative_to(DOCS)]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links from where the page really lies become links from where the site has it."""
    source = Path(page.file.abs_src_path)
    here = dirname(page.file.src_uri)
    for link, target in set(_links(markdown, source)):
        markdown = re.sub(
            rf"(?<=\]\(){re.escape(link)}(?=[)#])", relpath(_address(target), here), markdown
        )
    return markdown


def _address(path: Path) -> str:
    inside = path.is_relative_to(DOCS)
    return path.relative_to(DOCS).as_posix() if inside else f"source/{path.relative_to(ROOT)}"


def _links(markdown: str, source: Path) -> Iterator[tuple[str, Path]]:
    for link in LINK.findall(markdown):
        target = (source.parent / link).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            raise PluginError(f"{source.relative_to(ROOT)}: the link ({link}) leads to no file")
        yield link, target
