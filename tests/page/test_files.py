"""The page's files as the server hands them out: no browser needed."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from mlx_spec.config.speculation import DRAFTERS
from mlx_spec.server.routes.page import PAGE_HEADERS, read_page, routes

PAGE = read_page()
TEXTS = {name: file.content.decode() for name, file in PAGE.items()}
SCRIPTS = sorted(name for name in PAGE if name.endswith(".js"))


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(routes(None, None))
    return TestClient(app)


def test_every_file_comes_with_the_policy_and_once(client: TestClient) -> None:
    for path in ("/", *(f"/page/{name}" for name in PAGE)):
        answer = client.get(path)
        assert answer.status_code == 200
        assert [answer.headers[name] for name in PAGE_HEADERS] == [*PAGE_HEADERS.values()]
        again = client.get(path, headers={"If-None-Match": f'"x", {answer.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert "Content-Security-Policy" in again.headers
        assert client.head(path).headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("name", ["nothing.js", "..%2f..%2f__init__.py", "%2e%2e/page.py", "index"])
def test_nothing_else_can_be_read(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


def test_all_that_is_named_is_there_and_all_that_is_there_is_named() -> None:
    named = set(re.findall(r'"/page/([\w.]+)"', TEXTS["index.html"]))
    for name in SCRIPTS:
        named |= set(re.findall(r'from "\./([\w.]+)"', TEXTS[name]))
    assert named | {"index.html"} == set(PAGE)
    ids = set(re.findall(r'\bid="([\w-]+)"', TEXTS["index.html"]))
    asked = {one for text in TEXTS.values() for one in re.findall(r'byId\("([\w-]+)"\)', text)}
    assert asked
    assert asked <= ids


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    html = TEXTS["index.html"]
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\son\w+=|\sstyle=", html)
    for name, text in TEXTS.items():
        urls = set(re.findall(r"\b\w+://[^\s\"'`]+", text))
        assert urls <= {"http://www.w3.org/2000/svg"}, name
        assert len(text.splitlines()) <= 350, name


def test_the_legend_knows_every_drafter() -> None:
    known = re.findall(r"^  (\w+): \[\d, ", TEXTS["drafters.js"], re.MULTILINE)
    assert sorted(known) == sorted(DRAFTERS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_markup_of_texts(name: str) -> None:
    made = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser|srcdoc"
    )
    assert not re.search(made, TEXTS[name])
