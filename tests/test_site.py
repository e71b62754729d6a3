"""The documentation site: built without a warning or a network; no link is dead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import metal_kernels
import mlx_spec
import mlx_spec.pipeline

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# What a browser fetches by itself.
FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}
NOT_FETCHED = {"canonical", "next", "prev", "alternate"}


class Parts(HTMLParser):
    """Links, fetched assets and anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        for name in ("href", "src"):
            if name in given and given.get("rel") not in NOT_FETCHED:
                self.links.append(given[name])
                if (tag, name) in FETCHED:
                    self.fetched.append(given[name])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    # Who asks the network finds nobody there.
    nobody = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, **nobody, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def dead_links(site: Path) -> dict[str, set[str]]:
    """Of each page the links inside the site that lead nowhere, to a page or to a place in one."""
    pages = {page: Parts(page) for page in site.rglob("*.html") if page.name != "404.html"}
    dead: dict[str, set[str]] = defaultdict(set)
    for page, parts in pages.items():
        for link in parts.links:
            split = urlsplit(link)
            if split.scheme or split.netloc:
                continue
            target = (page.parent / unquote(split.path)).resolve() if split.path else page
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else {split.fragment}
            if not target.exists() or (split.fragment and unquote(split.fragment) not in known):
                dead[str(page.relative_to(site))].add(link)
    return dict(dead)


def test_every_link_leads_somewhere(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 30
    assert dead_links(site) == {}


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<h2 id='x'></h2><a href='b.html#y'></a><a href='#x'></a>")
    (tmp_path / "b.html").write_text("<a href='a.html#x'></a><a href='c/'></a>")
    assert dead_links(tmp_path) == {"a.html": {"b.html#y"}, "b.html": {"c/"}}


def test_a_reader_s_browser_asks_nobody_else(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert [one for one in Parts(page).fetched if re.match(r"(\w+:)?//", one)] == [], page
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)'\"]+", text) == [], style


def test_the_reference_has_every_public_name(site: Path) -> None:
    anchors = {anchor for page in site.glob("reference/*/*.html") for anchor in Parts(page).anchors}
    # What a name is, its page says under the module that it is from.
    shown = {anchor.rpartition(".")[2] for anchor in anchors}
    for module in (mlx_spec, mlx_spec.pipeline):
        assert set(module.__all__) - shown - {"Flags"} == set()
    assert {"attention", "sample", "norm_rope"} < shown & set(metal_kernels.__all__)


def test_the_search_finds_what_pages_say(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "kill -9" in index
    assert "BatchedMLXGenerator" in index


# --- pages that are read on GitHub only ------------------------------------------------------

PAGES = [
    ROOT / name
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", ".github/pull_request_template.md")
]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_links_of_the_repository_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)", page.read_text(encoding="utf-8")):
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not place or place in anchors(target), link
