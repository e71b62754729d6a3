"""Commands with ``--shard``: rank 0 serves, talks, reads and writes, the others say nothing; all
end when one is told to, whatever is under way.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_spec import batch_generate, load
from mlx_spec.cli.main import main
from tests.chatting import write_talker
from tests.ranks import LONGEST, Launched, launch

PROMPTS = ["def read_", "class Stack:", "import os", "x", "for i in"]
SAID = dict.fromkeys((65, 70, 75), 60.0)  # what was said before comes again
SILENT = (0, "", "")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_talker(tmp_path / "model", 4096)


def ranks(model: Path, *command: str, typed: str = "") -> Launched:
    """Two processes that run this command of mlx-spec."""
    options = ("--model", str(model), "--shard", "tensor")
    return launch(2, "-m", "mlx_spec", *command, *options, typed=typed)


def served(launched: Launched) -> httpx.Client:
    """A client of the server that they are."""
    line = launched.first_says("serving ")
    return httpx.Client(base_url=line.split(" at ")[1].strip().split(",")[0], timeout=LONGEST)


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def asked(**options: Any) -> dict[str, Any]:
    return {"prompt": PROMPTS[0], "max_tokens": 4000, "temperature": 0, "stream": True, **options}


@pytest.mark.slow
def test_serve_drains_when_the_other_rank_is_told_to_end(model: Path) -> None:
    """A client that goes, one that asks for nonsense, a batch in few slots; then SIGTERM to rank 1
    in the middle of an answer, which is finished."""
    expected = batch_generate(*load(str(model)), PROMPTS, max_tokens=40, logit_bias=SAID)
    with ranks(model, "serve", "--port", "0", "--batch-size", "3", "--no-adaptive") as launched:
        client = served(launched)
        with client.stream("POST", "completions", json=asked(ignore_eos=True)) as gone:
            next(events(gone))
        refused = client.post("completions", json=asked(max_tokens=-3))
        assert refused.status_code == 400
        wanted = asked(prompt=PROMPTS, max_tokens=40, stream=False, logit_bias=SAID)
        said = client.post("completions", json=wanted).json()
        assert [one["text"] for one in said["choices"]] == expected.texts
        assert said["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 0
        until = time.monotonic() + LONGEST
        while client.get("stats").json()["requests"]["cancelled"] < 1:
            assert time.monotonic() < until
        with client.stream("POST", "completions", json=asked(max_tokens=300)) as answer:
            coming = events(answer)
            first = next(coming)
            launched.processes[1].send_signal(signal.SIGTERM)
            pieces = [first, *coming]
        assert pieces[-1]["choices"][0]["finish_reason"] in ("length", "stop")
        (code, out, err), other = launched.wait()
    assert (code, out) == (0, ""), err
    assert other == SILENT


@pytest.mark.slow
def test_serve_ends_where_a_rank_dies(model: Path) -> None:
    """Its clients are told, and the process exits."""
    with ranks(model, "serve", "--port", "0") as launched:
        client = served(launched)
        with client.stream("POST", "completions", json=asked(ignore_eos=True)) as answer:
            coming = events(answer)
            next(coming)
            launched.processes[1].kill()
            try:
                last = list(coming)[-1]
            except httpx.RemoteProtocolError:  # the process was quicker
                last = None
        assert last is None or "error" in last
        (code, _, err), _ = launched.wait()
    assert code == 1, err
    assert "rank 1 of 2 is gone" in err


@pytest.mark.slow
def test_chat(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts may change, to what all ranks have; the end of the lines is the end of all."""
    lines = "hello\n/draft ngram\n/draft model demo-draft\n/draft off\nand then?\n"
    options = ("chat", "--no-history", "-q", "-m", "20", "--model", str(model))
    said = launch(2, "-m", "mlx_spec", *options, "--shard", "tensor", typed=lines).wait()
    (code, out, err), other = said
    assert other == SILENT
    assert "the other ranks" in err
    assert "Traceback" not in err
    typed = model / "typed"
    typed.write_text("hello\nand then?\n")
    with typed.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main([*options]) == 0
    assert out == capsys.readouterr().out
    assert code == 1  # something was asked for and could not be done


CONFIG = """
input = "in.jsonl"
output = "{out}"
[options]
seed = 3
temp = 0.7
batch_size = 2
max_tokens = 80
[[stage]]
kind = "generate"
[[stage]]
kind = "generate"
prompt_template = "{{{{ prompt }}}} more"
output_field = "more"
max_tokens = 6
"""


def write_input(folder: Path) -> Path:
    lines = [json.dumps({"prompt": f"{place} {text}"}) for place, text in enumerate(PROMPTS * 2)]
    lines[3] = "not json"
    source = folder / "in.jsonl"
    source.write_text("\n".join(lines) + "\n")
    return source


@pytest.mark.slow
def test_a_chain_that_is_interrupted_and_goes_on(model: Path, tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches all ranks; one says so."""
    write_input(tmp_path)
    for name in ("one", "many"):
        (tmp_path / f"{name}.toml").write_text(CONFIG.format(out=f"{name}.jsonl"))
    assert main(["pipeline", "run", str(tmp_path / "one.toml"), "-q", "--model", str(model)]) == 1
    command = ("pipeline", "run", str(tmp_path / "many.toml"), "-q")
    begun = tmp_path / "many.jsonl.stages" / "1-generate.jsonl"
    with ranks(model, *command) as launched:
        while not (begun.exists() and begun.stat().st_size):
            assert launched.processes[0].poll() is None, launched.wait()
            time.sleep(0.01)
        for process in launched.processes:
            process.send_signal(signal.SIGINT)
        (code, out, err), other = launched.wait()
    assert (code, out, other) == (130, "", SILENT), err
    assert "interrupted in 1-generate; go on with --resume" in err
    (code, out, err), other = ranks(model, *command, "--resume").wait()
    assert (code, out, other) == (1, "", SILENT), err
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.slow
def test_a_batch_and_one_with_nothing_left_to_do(model: Path, tmp_path: Path) -> None:
    """Then no model is loaded, and the others, who were about to, end all the same."""
    source, options = write_input(tmp_path), ("-q", "-m", "8", "--batch-size", "3")
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    assert main(["batch", str(source), str(one), *options, "--model", str(model)]) == 1
    command = ("batch", str(source), str(many), *options)
    for more in ((), ("--resume",)):
        (code, out, err), other = ranks(model, *command, *more).wait()
        assert (code, out, other) == (1, "", SILENT), err
        assert many.read_bytes() == one.read_bytes()


@pytest.mark.slow
def test_a_mistake_is_said_once(model: Path, tmp_path: Path) -> None:
    """By rank 0, before or while models are loaded; the others end."""
    (code, out, err), other = ranks(
        model, "batch", "nowhere.jsonl", str(tmp_path / "x.jsonl")
    ).wait()
    assert (code, out, other) == (2, "", SILENT)
    assert err.count("error:") == 1, err
