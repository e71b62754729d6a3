"""Text files of every encoding and line end, wherever a user's text is read."""

from __future__ import annotations

import codecs
import io
from pathlib import Path

import pytest

from mlx_spec.batching.prompts import encode
from mlx_spec.cli.prompts import read_prompts
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.config_file import read_config
from mlx_spec.pipeline.templates import PromptTemplate
from mlx_spec.text_files import decode, read_text, utf8_lines
from tests.api_support import tokenizer

TEXT = "häuser 日本 😀\n\x0cend"
FORMS = {
    "UTF-8": TEXT.encode(),
    "UTF-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "UTF-16 LE": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16 BE": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-32 LE": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "UTF-32 BE": codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
}
BROKEN = [
    (b"caf\xe9", "not valid UTF-8, at byte 4"),
    (codecs.BOM_UTF16_LE + b"a", "not valid UTF-16"),
    ("text".encode("utf-16-le"), "UTF-16 or UTF-32 without a byte order mark"),
    ("text".encode("utf-32-be"), "UTF-16 or UTF-32 without a byte order mark"),
]


@pytest.mark.parametrize("form", FORMS)
def test_a_text_is_the_same_in_every_encoding(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(FORMS[form])
    assert read_text(path, "x") == decode(FORMS[form], "x") == TEXT
    assert b"".join(utf8_lines(io.BytesIO(FORMS[form]), "x")) == TEXT.encode()
    assert PromptTemplate(f"@{path}").render({}) == TEXT
    assert read_prompts([], path) == TEXT.split("\n")


@pytest.mark.parametrize(("data", "words"), BROKEN)
def test_another_encoding_is_one_line_that_names_it(
    data: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    for read in (
        lambda: read_text(path, "x"),
        lambda: PromptTemplate(f"@{path}"),
        lambda: read_prompts([], path),
        lambda: read_config(path),
    ):
        with pytest.raises(InvalidRequest, match=words):
            read()


def test_a_config_may_have_a_mark_or_be_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    text = 'input = "ä.jsonl"\r\noutput = "b.jsonl"\r\n[[stage]]\r\nkind = "generate"\r\n'
    for data in (codecs.BOM_UTF8 + text.encode(), text.encode("utf-16")):
        path.write_bytes(data)
        assert read_config(path).input == tmp_path / "ä.jsonl"


def test_a_mark_is_no_part_of_a_chat_template() -> None:
    words, plain = tokenizer("\ufeff{{ messages[0].content }}"), tokenizer()
    assert encode(words, [{"role": "user", "content": "def f"}]) == plain.encode("def f")


LINES = ["one\x0ctwo", "three\u2028four", "five\u2029\x85six", "seven\x0b\x1ceight"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_prompts_end_at_line_ends_and_at_nothing_else(end: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(end.join([*LINES, "", "  ", ""]), encoding="utf-8", newline="")
    assert read_prompts([], path) == LINES


def test_a_carriage_return_inside_a_unix_line_stays(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"10%\r20%\nnext\n")
    assert read_prompts([], path) == ["10%\r20%", "next"]


@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        (b"\xef\xbb\xbfdef f", "def f"),
        ("größe".encode("utf-16"), "größe"),
        (b"a\r\nb", "a\nb"),
        ("größe".encode(), "größe"),
    ],
)
def test_stdin_is_read_as_a_file_is(
    data: bytes, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any locale: it says nothing about what a pipe carries."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
    assert read_prompts(["-"], None) == [prompt]


def test_an_argument_s_letters_survive_a_locale_without_them() -> None:
    disguised = "größe".encode().decode("ascii", "surrogateescape")
    assert read_prompts([disguised], None) == ["größe"]
    with pytest.raises(InvalidRequest, match="not valid UTF-8"):
        read_prompts(["\udcff"], None)
