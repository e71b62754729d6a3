"""Whatever README and guide show does run: python, commands, configs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import mlx_spec
from mlx_spec.model import loader
from mlx_spec.server.options import ServerOptions
from tests.servers import running_server
from tests.snippets import ROOT, Page, blocks, commands, parse, toy_folder

GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "api",
            "benching",
            "chat",
            "distributed",
            "exactness",
            "gguf",
            "index",
            "records",
            "stages",
            "training",
        )
    ),
    *GUIDE,
]
# The files that commands are shown with.
FILES = {
    "in.jsonl": '{"id": 1, "text": "x = [1, 2]"}\n{"id": 2, "text": "import os", "stop": "c"}\n',
    "prompts.txt": "def f(\nclass A:\n",
    "notes.txt": "def read_",
    "chats.json": '[{"role": "user", "content": "def f("}]',
    "report.txt": "import os",
    "hosts.json": "[]",
    "questions.jsonl": '{"prompt": "def f("}\n',
    "requests.jsonl": '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": '
    '{"messages": [{"role": "user", "content": "def f("}], "max_tokens": 4}}\n',
    "prompts.jsonl": '{"prompt": "def f("}\n',
    "person.json": '{"type": "object", "properties": {"age": {"type": "integer"}}}',
}
# Pages whose pieces speak to a server.
SERVED = ("serving", "requests", "clients")
# What pages of short pieces take as there.
GIVEN = {"api": ("model", "tokenizer", "schema")}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("toys") / "toy")


@pytest.fixture
def place(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files, where every name of a model is the toy's."""
    monkeypatch.setattr(loader, "locate", lambda name, revision=None: toy)
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    messages = [[{"role": "user", "content": "def f("}]]
    pyarrow.parquet.write_table(pyarrow.table({"messages": messages}), "chats.parquet")
    shutil.copytree(ROOT / "examples", "examples", ignore=shutil.ignore_patterns("out"))
    return tmp_path


@pytest.mark.parametrize("path", PAGES, ids=[path.stem for path in PAGES])
def test_what_a_page_shows_runs(path: Path, place: Path) -> None:
    given = {}
    if path.stem in GIVEN:
        model, tokenizer = loader.load("demo")
        schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
        given = {"model": model, "tokenizer": tokenizer, "schema": schema}
        given |= {name: getattr(mlx_spec, name) for name in mlx_spec.__all__}
    page = Page(path, given)
    page.run()
    assert page.ran + page.parsed > 0 or not blocks(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("store")
    with running_server(ServerOptions(port=0, store=str(store))) as live:
        yield live.url


@pytest.mark.parametrize("name", SERVED)
def test_what_clients_are_shown_runs(name: str, place: Path, server: str) -> None:
    page = Page(ROOT / "docs" / f"{name}.md", server=server)
    page.run()
    assert page.ran > 1


def test_an_option_that_does_not_exist_is_found() -> None:
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse(["generate", "--tempo", "3"])
    with pytest.raises(Exception, match=r"(?i)no such command"):
        parse(["generates"])
    parse(["pipeline", "run", "x.toml", "--resume"])


def test_lines_are_read_as_a_shell_does() -> None:
    text = "echo 'a # b' | mlx-spec generate \\\n    -q > out.txt  # the rest\n\n# nothing\n"
    text += "curl x -d '{\n  \"a\": 1}'\n"
    assert list(commands(text)) == [
        ["echo", "a # b", "|", "mlx-spec", "generate", "-q", ">", "out.txt"],
        ["curl", "x", "-d", '{\n  "a": 1}'],
    ]
