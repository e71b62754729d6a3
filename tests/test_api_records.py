"""``mlx-spec batch`` over OpenAI's batch records: in by themselves, out in the same format."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from mlx_spec import (
    BatchedMLXGenerator,
    BatchingConfig,
    ChatConfig,
    GenerationResult,
    SamplingParams,
    batch_generate,
    load,
)
from mlx_spec.cli.main import main
from mlx_spec.pipeline.backend import Generation
from mlx_spec.pipeline.records import Record
from mlx_spec.pipeline.stage import LoadedModel, Respond
from mlx_spec.pipeline.stage_runner import StageRunner
from mlx_spec.server.api_records import ApiRecords
from tests import api_support
from tests.folders import write_folder
from tests.jsonl import read_lines

Run = Callable[..., int]
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def request(name: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    """A line of a batch file."""
    body = {"model": "gpt-4o-mini", "max_tokens": 6, **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


REQUESTS = [
    request("chat", messages=turns("def read_")),
    request("plain", PLAIN, prompt="class Stack:\n    def "),
    request("two", PLAIN, prompt="import ", n=2, temperature=0.9, seed=5),
    request("streamed", messages=turns("for i in"), stream=True, temperature=1.1),
    request("unseeded", PLAIN, prompt="return self.", temperature=0.9),
    request("again", PLAIN, prompt="return self.", temperature=0.9),
    request("hot", messages=turns("x"), temperature=-1),
    request("elsewhere", "/v1/moderations", input="x"),
    request("long", PLAIN, prompt="x " * 5000),
]


def write(path: Path, requests: list[dict[str, Any]]) -> Path:
    lines = [json.dumps(one) for one in requests]
    path.write_text("\n".join([*lines, "not json"]) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template."""
    made = write_folder(
        tmp_path_factory.mktemp("model") / "m", dtype=mx.float32, max_position_embeddings=256
    )
    (made / "chat_template.jinja").write_text(api_support.TEMPLATE)
    return made


@pytest.fixture
def run(folder: Path) -> Run:
    """The command, over that model."""
    return lambda source, out, *options: command(folder, source, out, *options)


def command(folder: Path, source: Path | str, out: Path | str, *options: str) -> int:
    own = ("--model", str(folder), "--draft", "ngram", "--seed", "7", "-q")
    return main(["batch", str(source), str(out), *own, *options])


@pytest.fixture(scope="module")
def lines(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The output of an undisturbed run."""
    place = tmp_path_factory.mktemp("api")
    source, out = write(place / "in.jsonl", REQUESTS), place / "out.jsonl"
    assert command(folder, source, out) == 1
    return out.read_bytes()


def test_answers_are_openai_s(lines: bytes) -> None:
    """Each record has its line, in order, and its body is what OpenAI's client reads."""
    results = [json.loads(line) for line in lines.splitlines()]
    assert [one["_record"] for one in results] == list(range(1, len(REQUESTS) + 2))
    assert [one["custom_id"] for one in results] == [*(r["custom_id"] for r in REQUESTS), None]
    assert len({one["id"] for one in results}) == len(results)
    kinds = {CHAT: ChatCompletion, PLAIN: Completion}
    for asked, one in zip(REQUESTS[:6], results[:6], strict=True):
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        answer = kinds[asked["url"]].model_validate(one["response"]["body"], strict=True)
        assert len(answer.choices) == asked["body"].get("n", 1)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 6 * len(answer.choices)


class Lines(list[dict[str, Any]]):
    """Takes results."""

    def write(self, record: dict[str, Any]) -> None:
        self.append(record)


def test_requests_are_decoded_together_and_drafted() -> None:
    """Five at a time in three rows, six guesses each: the same lines as one by one, without."""
    tokenizer = api_support.tokenizer(api_support.TEMPLATE)
    loaded = LoadedModel("m", tokenizer, 512, SamplingParams(), ChatConfig())
    asked = [request(f"r{i}", messages=turns(text)) for i, text in enumerate(api_support.PROMPTS)]
    found = []
    for rows, speculation in ((3, api_support.SIX), (1, api_support.OFF)):
        with BatchedMLXGenerator(
            api_support.model(),
            tokenizer,
            draft_model=api_support.draft_model(),
            batching=BatchingConfig(batch_size=rows),
            speculation=speculation,
        ) as generator:
            lines = Lines()
            runner = StageRunner(ApiRecords(), Generation(generator, loaded), lines)
            runner.run([Record(number, fields) for number, fields in enumerate(asked, start=1)])
            found.append((lines, generator.stats().generation))
    (lines, stats), (alone, _) = found
    assert lines == alone
    assert not [one for one in lines if one["error"]]
    assert stats.accepted > 0
    assert stats.row_steps > 2 * stats.steps


def test_records_without_a_seed_have_one_each(lines: bytes) -> None:
    """Not the run's: the same request twice has two answers."""
    first, second = [json.loads(line)["response"]["body"] for line in lines.splitlines()[4:6]]
    assert first["choices"][0]["text"] != second["choices"][0]["text"]


def test_files_hold_nothing_that_the_clock_decides(lines: bytes) -> None:
    """What was guessed, and found in the prefix cache, is another number in the next run."""
    result = GenerationResult(
        "x", [1], "stop", 9, 1, 0.1, 0.2, drafted=5, accepted=3, reused_tokens=8
    )
    asked = ApiRecords().prepare(request("a", PLAIN, prompt="x"))
    assert isinstance(asked, Respond)
    model = LoadedModel("m", api_support.tokenizer(), 64, SamplingParams(), ChatConfig())
    body = asked.read(model).write([result])
    usage = body["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == 0
    assert usage["completion_tokens_details"]["rejected_prediction_tokens"] == 0
    assert body["created"] == 0


def test_what_fails_says_so_in_both_places(lines: bytes) -> None:
    results = [json.loads(line) for line in lines.splitlines()][6:]
    told = ["temperature", "'/v1/moderations'", "context is", "line 10: not JSON"]
    for one, words in zip(results, told, strict=True):
        assert one["_failed"]
        assert one["response"]["status_code"] == 400
        assert words in one["error"]["message"]
        assert one["response"]["body"]["error"]["message"] == one["error"]["message"]


def test_texts_are_the_target_s_own(lines: bytes, folder: Path) -> None:
    """Batched, drafted and by way of an API they are what the target alone says."""
    model, tokenizer = load(str(folder))
    results = [json.loads(line) for line in lines.splitlines()]
    alone = [
        batch_generate(model, tokenizer, [prompt], max_tokens=6, **sampling).results[0].text
        for prompt, sampling in (
            ("class Stack:\n    def ", {}),
            ("import ", {"temperature": 0.9, "seed": 5}),
            ("import ", {"temperature": 0.9, "seed": 6}),
        )
    ]
    said = [choice["text"] for one in results[1:3] for choice in one["response"]["body"]["choices"]]
    assert said == alone


@pytest.mark.parametrize("change", [["--no-speculative"], ["--no-batching"], ["--batch-size", "3"]])
def test_two_runs_write_the_same_bytes(
    lines: bytes, run: Run, change: list[str], tmp_path: Path
) -> None:
    source, out = write(tmp_path / "in.jsonl", REQUESTS), tmp_path / "out.jsonl"
    assert run(source, out, *change) == 1
    assert out.read_bytes() == lines


def test_a_run_goes_on_to_the_same_bytes(lines: bytes, run: Run, tmp_path: Path) -> None:
    """Cut off in the middle of a line; and what failed can be run again."""
    source, out = write(tmp_path / "in.jsonl", REQUESTS), tmp_path / "out.jsonl"
    assert run(source, out, "--limit", "4") == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b"\n") + 20])
    assert run(source, out, "--resume") == 1
    assert out.read_bytes() == lines
    assert run(source, out, "--retry-failed") == 1
    assert out.read_bytes() == lines


def test_they_may_come_from_a_pipe(
    lines: bytes, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = write(tmp_path / "in.jsonl", REQUESTS).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert run("-", tmp_path / "out.jsonl") == 1
    assert (tmp_path / "out.jsonl").read_bytes() == lines


def test_the_run_says_what_bodies_leave_open(run: Run, tmp_path: Path) -> None:
    bare = {"custom_id": "a", "body": {"prompt": "import "}}  # no url: the body tells
    source, out = write(tmp_path / "in.jsonl", [bare]), tmp_path / "out.jsonl"
    assert run(source, out, "-m", "3") == 1
    assert read_lines(out)[0]["response"]["body"]["usage"]["completion_tokens"] == 3


def test_other_records_are_what_they_were(run: Run, tmp_path: Path) -> None:
    """A prompt of their own, or a word on where it is: then it is the command's usual output."""
    both = {"prompt": "import ", "custom_id": "a", "body": {"messages": turns("x")}}
    source, out = write(tmp_path / "in.jsonl", [both]), tmp_path / "out.jsonl"
    assert run(source, out, "-m", "3") == 1
    assert read_lines(out)[0]["output"]
    asked = [request("a", PLAIN, prompt="import ")]
    source = write(tmp_path / "in.jsonl", asked)
    template = ("--prompt-template", "{{ body.prompt }}", "--overwrite")
    assert run(source, out, "-m", "3", *template) == 1
    assert read_lines(out)[0]["output"]


def test_a_table_cannot_hold_answers(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", REQUESTS)
    assert run(source, tmp_path / "out.csv") == 2
    assert "whose answers are JSON lines" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
