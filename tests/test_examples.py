"""Everything in ``examples/`` runs as it stands: notebook, script, configs, web app, clients."""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from mlx_spec import SamplingParams, generate, load
from mlx_spec.cli.main import main
from tests.jsonl import read_lines

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy, so that no output is left in the tree."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "e", ignore=shutil.ignore_patterns("out")))


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.toml")))
def test_the_configs_run(name: str, examples: Path) -> None:
    assert main(["pipeline", "run", str(examples / name), "-q", "--limit", "5"]) in (0, 1)
    (out,) = (examples / "out").glob("*.jsonl")
    first = sorted((examples / "out").glob("*.stages/1-*.jsonl"))
    # What a stage decides with the embedded models is chance; that it takes every record is not.
    assert [len(read_lines(path)) for path in first] == [5]
    # They may leave a line empty, too; what they may not is fail otherwise.
    records = [*read_lines(out), *read_lines(first[0])]
    assert all("is empty" in record["error"] for record in records if "error" in record)


def test_the_script_runs_twice(examples: Path) -> None:
    """The second time there is nothing left to do."""
    # The command as it is installed, from the environment that runs the tests.
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    source = EXAMPLES.parent
    for words in ("36 written", "36 done before"):
        done = subprocess.run(
            ["sh", str(examples / "generate.sh")],
            env={**os.environ, "PATH": scripts, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert words in done.stderr
    records = read_lines(examples / "out" / "generated.jsonl")
    assert [record["_record"] for record in records] == list(range(1, 37))
    assert all(record["output"] for record in records)


@pytest.mark.slow
def test_a_corpus_over_two_workers_is_the_same_bytes(examples: Path) -> None:
    """Ray starts here, with two workers that load the embedded models."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", str(examples / "corpus_over_ray.sh")],
        env={**os.environ, "LIMIT": "6", "PATH": scripts, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the same bytes" in done.stdout


# --- the web app ----------------------------------------------------------------------------


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("MODEL", "demo-draft")  # the quicker one
    monkeypatch.setenv("DRAFT", "demo-draft")
    return importlib.import_module("web")


def test_the_web_app_asks_all_questions_in_one_batch(web: Any) -> None:
    """Each answer is the model's own, beside eleven others."""
    texts = ["def read_", "class Stack:", "x = [1, 2]"]

    async def ask() -> tuple[list[httpx.Response], httpx.Response, Any]:
        transport = httpx.ASGITransport(app=web.app)
        async with (
            web.lifespan(web.app),
            httpx.AsyncClient(transport=transport, base_url="http://here") as client,
        ):
            asked = (client.post("/review", json={"text": text}) for text in texts)
            answers = await asyncio.gather(*asked)
            refused = await client.post("/review", content="no JSON")
            return answers, refused, (await client.get("/stats")).json()

    answers, refused, stats = asyncio.run(ask())
    assert refused.status_code == 400
    assert stats == {"running": 0, "waiting": 0, "done": 12}
    model, tokenizer = load("demo-draft")
    assert all(answer.json()["mood"] in ("good", "bad", "mixed") for answer in answers)
    for name, (question, options) in web.QUESTIONS.items():
        alone = generate(model, tokenizer, f"Text: {texts[1]}\n{question}", sampling=options)
        assert answers[1].json()[name] == alone.text.strip(), name


def test_a_reader_who_goes_away_takes_his_questions_along(
    web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = SamplingParams(max_tokens=None, ignore_eos=True)
    monkeypatch.setattr(web, "QUESTIONS", {"a": ("", endless), "b": ("", endless)})
    sent: list[Any] = []

    async def leave() -> tuple[int, int]:
        body = {"type": "http.request", "body": b'{"text": "def f("}', "more_body": False}
        messages = iter([body, {"type": "http.disconnect"}])

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/review", "headers": []}
        async with web.lifespan(web.app):
            await web.app({**scope, "query_string": b"", "app": web.app}, receive, send)
            generator = web.app.state.generator
            await asyncio.to_thread(generator.drain)
            stats = generator.stats()
            return stats.running, stats.finished

    assert asyncio.run(leave()) == (0, 0)
    assert sent[0]["status"] == 499


# --- the notebook ---------------------------------------------------------------------------


def cells(notebook: Any, word: str) -> list[Any]:
    """The outputs of the one code cell that holds a word."""
    (cell,) = (c for c in notebook.cells if c.cell_type == "code" and word in f"{c.source}\n")
    return list(cell.outputs)


def html(notebook: Any, word: str) -> str:
    """What a cell shows as HTML, the last time it did."""
    return str([o.data["text/html"] for o in cells(notebook, word) if "data" in o][-1])


def text(notebook: Any, word: str) -> str:
    """What a cell prints, or its value."""
    shown = cells(notebook, word)
    return "".join(o.text if o.output_type == "stream" else o.data["text/plain"] for o in shown)


def check(notebook: Any) -> None:
    """What the notebook is there to show."""
    assert text(notebook, "fast.texts == plain.texts") == "True"
    assert text(notebook, "sampled[0] == sampled[1]") == "True"
    # Results, statistics and streams show themselves.
    assert html(notebook, "plain = batch_generate").count("<pre") == 4
    assert "tokens a verify pass" in html(notebook, "fast = batch_generate")
    assert "time to first token" in html(notebook, "result = await third")
    assert "length, 16 chunks not read yet" in html(notebook, "urgent\n")
    assert "0 running, 0 waiting" in html(notebook, "generator.stats()")
    # Inside the notebook's event loop: read at once, token by token, and awaited.
    assert "True" in text(notebook, "generator.drain()")
    assert text(notebook, "async for").count("|") == 48
    # Progress changes in place, and ends where it should.
    assert "12/12" in html(notebook, "rows = collect")
    # What the stage is asked is what this toy can do.
    assert "('try', 'except'): 6, ('def', 'return'): 6" in text(notebook, "Counter((row")


def test_the_notebook_s_own_outputs_are_those_of_a_run() -> None:
    notebook = nbformat.read(EXAMPLES / "batch_speculation.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    check(notebook)


def test_the_notebook_runs(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(examples / "batch_speculation.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(
        notebook,
        timeout=200,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(examples)}},
    )
    client.execute()
    check(notebook)
