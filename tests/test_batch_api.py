"""OpenAI's Batch API against a live server, by OpenAI's own client: files, batches, restarts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from mlx_spec import batch_generate
from mlx_spec.server.options import ServerOptions
from tests.servers import CHAT, SAFETY, Live, running_server, toy

PLAIN = "/v1/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("store")) as made:
        yield made


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Live]:
    with running_server(ServerOptions(port=0, store=str(folder / "s"), **options)) as made:
        yield made


def client_of(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", timeout=SAFETY, max_retries=0)


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with client_of(live.url) as made:
        yield made


def batch_file(count: int, url: str = CHAT, **body: Any) -> bytes:
    """Requests that differ in their prompts."""
    lines = []
    for i in range(count):
        asked = {"messages": [{"role": "user", "content": f"def f{i}("}]}
        if url == PLAIN:
            asked = {"prompt": f"def f{i}("}
        body = {"model": "any", "max_tokens": 6, **body}
        record = {"custom_id": f"r{i}", "method": "POST", "url": url, "body": {**asked, **body}}
        lines.append(json.dumps(record))
    return "\n".join(lines).encode()


def finished(client: OpenAI, name: str) -> Any:
    """Wait for a batch's end."""
    for _ in range(int(SAFETY / 0.05)):
        batch = client.batches.retrieve(name)
        if batch.status in ENDED:
            return batch
        threading.Event().wait(0.05)
    raise AssertionError(batch)


def test_openai_s_client_runs_a_batch(client: OpenAI) -> None:
    """From upload to content; the answers are those of the target alone."""
    data = batch_file(9)
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert (file.object, file.bytes, file.filename) == ("file", len(data), "in.jsonl")
    assert client.files.content(file.id).content == data
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"name": "nightly"},
    )
    assert (batch.object, batch.status) == ("batch", "validating")
    batch = finished(client, batch.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (9, 9)
    assert batch.metadata == {"name": "nightly"}
    assert batch.output_file_id is not None
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).iter_lines()]
    assert [one["custom_id"] for one in results] == [f"r{i}" for i in range(9)]
    answers = [ChatCompletion.model_validate(one["response"]["body"]) for one in results]
    assert all(answer.created == batch.created_at for answer in answers)
    model, tokenizer = toy()
    prompts = [[{"role": "user", "content": f"def f{i}("}] for i in range(9)]
    alone = [batch_generate(model, tokenizer, [one], max_tokens=6).results[0] for one in prompts]
    assert [a.choices[0].message.content for a in answers] == [one.text for one in alone]
    assert batch.id in [one.id for one in client.batches.list(limit=1)]
    assert file.id in [one.id for one in client.files.list(purpose="batch")]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_n_texts_and_errors_beside_answers(client: OpenAI) -> None:
    data = batch_file(2, PLAIN, n=2, temperature=0.8) + b"\n"
    wrong = {"custom_id": "x", "method": "POST", "url": PLAIN, "body": {"prompt": 5}}
    long = {**wrong, "custom_id": "y", "body": {"prompt": "x " * 2000}}
    data += json.dumps(wrong).encode() + b"\n" + json.dumps(long).encode()
    file = client.files.create(file=data, purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=PLAIN, completion_window="24h")
    batch = finished(client, made.id)
    assert (batch.status, batch.request_counts.failed) == ("completed", 2)
    good = client.files.content(batch.output_file_id).text.splitlines()
    assert [len(json.loads(line)["response"]["body"]["choices"]) for line in good] == [2, 2]
    bad = [json.loads(line) for line in client.files.content(batch.error_file_id).iter_lines()]
    assert [one["custom_id"] for one in bad] == ["x", "y"]
    assert "context" in bad[1]["error"]["message"]


def test_limits_of_the_server_hold_for_batches(tmp_path: Path) -> None:
    options = {"max_n": 1, "max_batch_requests": 3, "max_file_bytes": 2000, "max_store_bytes": 2500}
    with serving(tmp_path, **options) as live, client_of(live.url) as client:
        file = client.files.create(file=batch_file(3, PLAIN, n=2, temperature=1), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint=PLAIN, completion_window="24h")
        batch = finished(client, made.id)
        first = json.loads(client.files.content(batch.error_file_id).text.splitlines()[0])
        assert "--max-n" in first["error"]["message"]
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=b"x" * 3000, purpose="batch")
        assert refused.value.status_code == 413
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=b"x" * 1500, purpose="batch")
        assert refused.value.status_code == 507
        assert "bytes more" in refused.value.message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/files/..%2f..%2flock", 404),
        ("GET", "/v1/files/..%2f..%2flock/content", 404),
        ("GET", "/v1/files/%2e%2e/content", 404),
        ("DELETE", "/v1/files/..%2flock", 404),
        ("GET", "/v1/files/file-000000000000000000000000/content", 404),
        ("GET", "/v1/batches/..%2f..%2flock", 404),
        ("POST", "/v1/batches/..%2flock/cancel", 404),
        ("GET", "/v1/batches?limit=0", 400),
        ("GET", "/v1/batches?after=none", 400),
        ("GET", "/v1/files?limit=-1", 400),
        ("POST", "/v1/files", 400),
        ("POST", "/v1/batches", 400),
    ],
)
def test_what_is_wrong_is_told_in_openai_s_format(
    live: Live, method: str, path: str, status: int
) -> None:
    with live.client() as client:
        reply = client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


def test_wrong_jobs_are_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=b"{}", purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.files.create(file=b"", purpose="batch")
    file = client.files.create(file=batch_file(1), purpose="batch").id
    window: Any = "24h"
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window=window)
    embeddings: Any = "/v1/moderations"
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        client.batches.create(input_file_id=file, endpoint=embeddings, completion_window=window)
    window = "soon"
    with pytest.raises(openai.BadRequestError, match="completion_window"):
        client.batches.create(input_file_id=file, endpoint=CHAT, completion_window=window)


def test_names_of_files_become_no_paths(live: Live, tmp_path: Path) -> None:
    evil = "../../../../../../tmp/evil.jsonl"
    with live.client() as client:
        files = {"file": (evil, b"{}", "application/jsonl")}
        made = client.post("/v1/files", files=files, data={"purpose": "batch"}).json()
        assert not Path("/tmp/evil.jsonl").exists()
        reply = client.get(f"/v1/files/{made['id']}/content")
    assert reply.content == b"{}"
    assert reply.headers["content-disposition"] == f'attachment; filename="{made["id"]}.jsonl"'
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_callers_go_before_batches(live: Live, client: OpenAI) -> None:
    """A batch that fills all rows for long: a caller's request is answered before it ends."""
    data = batch_file(12, PLAIN, max_tokens=300, ignore_eos=True)
    file = client.files.create(file=data, purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=PLAIN, completion_window="24h")
    for _ in range(int(SAFETY / 0.01)):
        if live.service.generator.stats().running == live.service.rows:
            break
        threading.Event().wait(0.01)
    with live.client() as caller:
        body = {"prompt": "def g(", "max_tokens": 4}
        assert caller.post(PLAIN, json=body).status_code == 200
    stats = live.service.generator.stats()
    assert stats.preempted > 0
    assert client.batches.retrieve(made.id).status == "in_progress"
    assert client.batches.cancel(made.id).status == "cancelling"
    batch = finished(client, made.id)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed + batch.request_counts.failed == 12


def test_another_server_s_store_is_told(live: Live, tmp_path: Path) -> None:
    """The rest of the server works."""
    options = ServerOptions(port=0, store=str(live.service.options.store))
    with running_server(options) as second, second.client() as client:
        reply = client.get("/v1/files")
        assert reply.status_code == 503
        assert "another server" in reply.json()["error"]["message"]
        assert client.post(PLAIN, json={"prompt": "x", "max_tokens": 2}).status_code == 200


# --- kill -9 --------------------------------------------------------------------------------


@contextmanager
def process(store: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``mlx-spec serve`` as a user starts it."""
    command = [sys.executable, "-m", "mlx_spec", "serve", "--port", "0", "--store", str(store)]
    with subprocess.Popen(
        [*command, "--batch-size", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as running:
        try:
            yield running, url_of(running)
        finally:
            running.kill()


def url_of(running: subprocess.Popen[str]) -> str:
    assert running.stderr is not None
    for line in running.stderr:
        if " at http://" in line:
            threading.Thread(target=running.stderr.read, daemon=True).start()
            return line.split(" at ")[1].split("/v1")[0]
    raise AssertionError("it ended")


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """Twice, wherever it is; then each record is there once, as in an undisturbed run."""
    data = batch_file(24, PLAIN, max_tokens=24, temperature=0.9, seed=3)
    with process(tmp_path / "s") as (_, url), client_of(url) as client:
        file = client.files.create(file=data, purpose="batch")
        name = client.batches.create(
            input_file_id=file.id, endpoint=PLAIN, completion_window="24h"
        ).id
        reach(client, name, 5)
    with process(tmp_path / "s") as (_, url), client_of(url) as client:
        reach(client, name, 12)
    with process(tmp_path / "s") as (_, url), client_of(url) as client:
        batch = finished(client, name)
        lines = client.files.content(batch.output_file_id).text.splitlines()
        again = client.batches.create(
            input_file_id=file.id, endpoint=PLAIN, completion_window="24h"
        ).id
        whole = client.files.content(finished(client, again).output_file_id).text.splitlines()
    assert batch.status == "completed"
    assert [json.loads(line)["custom_id"] for line in lines] == [f"r{i}" for i in range(24)]
    assert texts(lines) == texts(whole)


def texts(lines: list[str]) -> list[str]:
    return [json.loads(line)["response"]["body"]["choices"][0]["text"] for line in lines]


def reach(client: OpenAI, name: str, records: int) -> None:
    """Wait until so many records are done."""
    for _ in range(int(SAFETY / 0.05)):
        batch = client.batches.retrieve(name)
        if batch.request_counts is not None and batch.request_counts.completed >= records:
            return
        threading.Event().wait(0.05)
    raise AssertionError(batch)


def test_the_schema_knows_the_routes(live: Live) -> None:
    paths = httpx.get(f"{live.url}/openapi.json", timeout=SAFETY).json()["paths"]
    assert {"/v1/files", "/v1/files/{name}/content", "/v1/batches/{name}/cancel"} <= paths.keys()
