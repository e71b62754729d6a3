"""``examples/`` that speak to ``mlx-spec serve`` do so, to one that runs, and are batched."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_spec.server.options import ServerOptions
from tests.servers import Live, running_server

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    store = tmp_path_factory.mktemp("store")
    with running_server(ServerOptions(port=0, store=str(store))) as server:
        yield server


def said(
    name: str, live: Live, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> str:
    """What an example prints."""
    for variable in ("OPENAI_API_KEY", "MODEL"):
        patch.delenv(variable, raising=False)
    patch.setenv("OPENAI_BASE_URL", f"{live.url}/v1")
    patch.setenv("NO_PROXY", "127.0.0.1")
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_openai_s_client(
    live: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = said("openai_client.py", live, capsys, monkeypatch)
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    assert {"answer", "tokens", "stream", "form"} <= set(lines)
    assert "of which a draft had guessed" in lines["tokens"]
    assert "'name': '" in lines["form"]
    assert sum(line.startswith("What is") for line in out.splitlines()) == 8
    with live.client() as client:
        happening = client.get("/v1/stats").json()["happening"]
    assert happening["steps_with_several_rows"] > 0, happening


def test_langchain(
    live: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = said("langchain_client.py", live, capsys, monkeypatch)
    assert sum(" -> '" in line or ' -> "' in line for line in out.splitlines()) == 3
    assert "stream: " in out
