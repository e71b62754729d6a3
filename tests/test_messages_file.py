"""Conversations in and out: the forms that people write, and answers in the same form."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_spec import generate, load
from mlx_spec.cli.main import main
from mlx_spec.cli.messages_file import read_conversations
from mlx_spec.errors import InvalidRequest

ONE: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a river."},
]
TWO: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": [{"type": "text", "text": "Name a cat."}]},
]


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("a.json", json.dumps(ONE), "one"),
        ("a.json", json.dumps({"messages": ONE, "id": 7}), "one"),
        ("a.json", json.dumps([ONE, TWO]), "list"),
        ("a.json", json.dumps([{"messages": ONE}, {"messages": TWO}], indent=1), "list"),
        ("a.json", f"{json.dumps(ONE)}\n\n{json.dumps({'messages': TWO})}\n", "lines"),
        ("a.jsonl", json.dumps({"messages": ONE}), "lines"),
        ("a.json", "\ufeff" + json.dumps(ONE), "one"),
    ],
)
def test_answers_come_back_in_the_form_that_was_read(
    name: str, text: str, form: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = read_conversations(path, "[test]")
    assert found.form == form
    out = tmp_path / "out.json"
    answers = [f"answer {n}" for n in range(len(found.conversations))]
    found.answered(out, answers)
    again = read_conversations(
        out if form != "lines" else out.rename(out.with_suffix(".jsonl")), ""
    )
    assert again.form == form
    for before, after, answer in zip(
        found.conversations, again.conversations, answers, strict=True
    ):
        assert after.messages == [*before.messages, {"role": "assistant", "content": answer}]
        assert (after.fields or {}).get("id") == (before.fields or {}).get("id")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("[]", "no messages"),
        ("{}", "expected a list of"),
        ("7", "expected a list of"),
        ("not json", "line 1 is not JSON"),
        ('[{"role": "user"', "line 1 is not JSON"),
        ('[{"content": "x"}]', "message 1 has no role"),
        ('[[{"role": "user", "content": "x"}], 3]', "conversation 2: expected"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": 1}', "tools is int"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_conversation_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=words):
        read_conversations(path, "[test] a.json")


def test_conversations_are_answered_together_and_appended_to(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps([ONE, {"messages": TWO, "id": "b"}]))
    command = ["generate", "--model", str(talker), "--messages", str(source), "-m", "12", "--json"]
    assert main([*command, "--save-messages", str(out), "--draft", "ngram"]) == 0
    shown = capsys.readouterr()
    records = [json.loads(line) for line in shown.out.splitlines()]
    assert [record["prompt"] for record in records] == [ONE, TWO]
    model, tokenizer = load(talker)
    expected = [generate(model, tokenizer, one, max_tokens=12).text for one in (ONE, TWO)]
    assert [record["text"] for record in records] == expected
    first, second = json.loads(out.read_text())
    assert first == [*ONE, {"role": "assistant", "content": expected[0]}]
    assert second["messages"] == [*TWO, {"role": "assistant", "content": expected[1]}]
    assert second["id"] == "b"


def test_texts_become_conversations_where_that_is_asked(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    command = ["generate", "--model", str(talker), "-p", "Name a cat.", "-m", "8"]
    command += ["--system-prompt", "Be brief.", "--prefill-response", "A cat:"]
    assert main([*command, "--save-messages", str(out), "--verbose", "False"]) == 0
    said = capsys.readouterr().out.removesuffix("\n")
    assert json.loads(out.read_text()) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a cat."},
        {"role": "assistant", "content": f"A cat:{said}"},
    ]


def test_bad_messages_are_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.json"
    path.write_text('[[{"role": "user", "content": "x"}], [{"role": "user", "content": 7}]]')
    assert main(["generate", "--model", "./nowhere", "--messages", str(path)]) == 2
    assert "prompt 2 of 2: message 1 has content of type int" in capsys.readouterr().err
    different = [{"messages": TWO, "tools": [{"name": "a"}]}, {"messages": TWO}]
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(different).encode()), "utf-8")
    )
    assert main(["generate", "--model", "./nowhere", "--messages", "-"]) == 2
    assert "must have the same tools" in capsys.readouterr().err
    assert main(["generate", "-n", "2", "--temp", "1", "-p", "x", "--save-messages", "o"]) == 2
    assert "goes on with one answer" in capsys.readouterr().err
