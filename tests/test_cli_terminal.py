"""A terminal or pipe that takes no Unicode: every command's text comes out, in escapes."""

from __future__ import annotations

import io
import json

import pytest

from mlx_spec.cli.main import main

SHORT = ("-m", "2", "--no-speculative")
PROMPT = "x = '日本 → é😀'"


class Terminal:
    """stdout and stderr in one encoding, without substitutes of their own."""

    def __init__(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bytes = io.BytesIO(), io.BytesIO()
        self._encoding = encoding
        for name, stream in zip(("stdout", "stderr"), self._bytes, strict=True):
            monkeypatch.setattr(f"sys.{name}", io.TextIOWrapper(stream, encoding, errors="strict"))

    def texts(self) -> list[str]:
        import sys

        sys.stdout.flush()
        sys.stderr.flush()
        return [stream.getvalue().decode(self._encoding) for stream in self._bytes]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_an_object_stays_json_and_says_the_same(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(encoding, monkeypatch)
    assert main(["generate", "-p", PROMPT, "--json", *SHORT]) == 0
    assert json.loads(terminal.texts()[0])["prompt"] == PROMPT


def test_titles_and_errors_come_out_in_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal("cp1252", monkeypatch)
    assert main(["generate", "-p", PROMPT, "-p", "y", *SHORT]) == 0
    assert r"x = '\u65e5\u672c \u2192 é\ud83d\ude00'" in terminal.texts()[0]
    assert main(["generate", "--model", "./modèle-日本", "-p", "x"]) == 2
    assert r"modèle-\u65e5\u672c" in terminal.texts()[1]
    assert main(["doctor"]) == 0
