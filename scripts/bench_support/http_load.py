"""Open-loop load over HTTP: servers as processes of their own, and what their users see.

All speak OpenAI's ``/v1/completions`` with streams; a stamp is taken when a piece of text comes in.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench_support.open_loop import Served

# mlx-lm's server with the BLAS that ours finds: the comparison is not one of libraries.
_THEIRS = """
from mlx_spec.platform import ensure_blas
ensure_blas()
from mlx_lm.server import main
main()
"""
_STARTS = 120.0  # seconds that a server may take


@dataclass(frozen=True)
class Asked:
    """A request: when it comes, in seconds, its text, and how many tokens it wants."""

    at: float
    prompt: str
    tokens: int


@dataclass
class Heard(Served):
    """What its user sees.

    Attributes:
        text: what was said.
        error: what went wrong, in words; empty where nothing did.
    """

    text: str = ""
    error: str = ""
    parts: list[str] = field(default_factory=list)


def ours(*options: str) -> list[str]:
    """The command of our server."""
    return [sys.executable, "-m", "mlx_spec", "serve", *options]


def theirs(*options: str) -> list[str]:
    """The command of mlx-lm's."""
    return [sys.executable, "-c", _THEIRS, *options]


def free_port() -> int:
    """A port that nobody listens to now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[str]:
    """A server, from its first answer until the block ends.

    Yields:
        Its address.

    Raises:
        SystemExit: it ended by itself, or did not answer.
    """
    port = free_port()
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _STARTS
    while time.monotonic() < ends:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/v1/models", timeout=5).status_code < 500:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit(f"error: the server did not come up: {log.read_text()[-2000:]}")


def drive(url: str, requests: Sequence[Asked], model: str, limit: float) -> list[Heard]:
    """All requests at their times; each waits for its answer for ``limit`` seconds at most."""
    return asyncio.run(_all(url, requests, model, limit))


async def _all(url: str, requests: Sequence[Asked], model: str, limit: float) -> list[Heard]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=limit, limits=limits) as client:
        started = time.perf_counter()
        return list(await asyncio.gather(*(_one(client, one, model, started) for one in requests)))


async def _one(client: httpx.AsyncClient, asked: Asked, model: str, started: float) -> Heard:
    await asyncio.sleep(max(0.0, asked.at - (time.perf_counter() - started)))
    heard = Heard(asked.at)
    body = {
        "model": model,
        "prompt": asked.prompt,
        "max_tokens": asked.tokens,
        "temperature": 0.0,
        "stream": True,
    }
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                heard.error = f"{answer.status_code} {answer.text[:200]}"
                return heard
            async for line in answer.aiter_lines():
                _hear(heard, line, time.perf_counter() - started)
    except httpx.HTTPError as error:
        heard.error = repr(error)
    heard.text = "".join(heard.parts)
    return heard


def _hear(heard: Heard, line: str, now: float) -> None:
    if not line.startswith("data:") or line.endswith("[DONE]"):
        return
    for choice in json.loads(line.removeprefix("data:")).get("choices", []):
        if choice.get("text"):
            heard.parts.append(choice["text"])
            heard.stamps.append(now)


def write_model(model: Any, source: Path, folder: Path, **changed: Any) -> Path:
    """A model that was changed in memory, as a folder that others load.

    Args:
        model: its numbers.
        source: the folder that it came from, of whose other files copies are made.
        folder: is made.
        changed: entries of its ``config.json``.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder
