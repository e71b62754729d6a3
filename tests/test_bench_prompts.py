"""The prompts of ``mlx-spec bench``: real ones, of every length asked for, and never nonsense."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mlx_spec.bench.prompts import (
    KINDS,
    BuiltInPrompts,
    FilePrompts,
    functions,
    passages,
    questions,
)
from mlx_spec.errors import InvalidRequest


def words(text: str) -> int:
    """Tokens, as good as any tokenizer's here."""
    return len(re.findall(r"\w+|[^\w\s]", text))


BUILT_IN = BuiltInPrompts(words, overhead=10)


@pytest.mark.parametrize("length", [16, 64, 128, 512, 2048])
def test_they_are_about_as_long_as_asked(length: int) -> None:
    longest = max(words(source.pieces[0]) for source in functions())
    for one in BUILT_IN.make(32, length):
        tokens = words(one.prompt) + 10
        if length >= 128:
            assert abs(tokens - length) <= max(longest / 2, 25) + 5, one
        else:
            assert tokens <= length + 90, one


@pytest.mark.parametrize("length", [16, 128, 1024])
def test_they_are_whole_sentences_and_whole_functions(length: int) -> None:
    sentences = {piece for text in passages() for piece in text.pieces}
    sources = {source.pieces[0] for source in functions()}
    tasks = {task for each in questions().values() for task in each}
    titles = {text.title for text in passages()}
    for one in BUILT_IN.make(24, length):
        *parts, task = one.prompt.split("\n\n")
        assert task in tasks
        rest = "\n\n".join(parts)
        for piece in sorted(sentences | sources | titles, key=len, reverse=True):
            rest = rest.replace(piece, "")
        assert not rest.strip()


def test_all_kinds_come_in_turn_and_none_comes_twice() -> None:
    made = BUILT_IN.make(128, 128)
    assert [one.kind for one in made[:8]] == [*KINDS, *KINDS]
    assert len({one.prompt for one in made}) == 128
    assert BUILT_IN.make(5, 128) == made[:5]  # more rows are asked what fewer were asked, and more
    assert len({one.prompt for one in BUILT_IN.make(16, 16)}) == 16


def test_a_short_prompt_is_a_question_of_its_own() -> None:
    chat, code, summarise, _ = (one.prompt for one in BUILT_IN.make(4, 16))
    assert chat in questions()["chat"]
    assert code in questions()["code"]
    assert "above" not in chat + code
    assert summarise.endswith(questions()["summarise"][0])


def test_longer_ones_than_there_are_texts_for_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"--prompt-lengths: \d+ tokens.*--prompts FILE"):
        BUILT_IN.make(4, 100_000)


def test_the_code_is_python() -> None:
    assert len(functions()) >= 12
    for source in functions():
        (node,) = ast.parse(source.pieces[0]).body
        assert isinstance(node, ast.FunctionDef)


def test_prompts_of_a_file_come_by_category_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"prompt": "a1", "category": "a"}\n{"prompt": "a2", "category": "a"}\n'
        '{"turns": ["b1", "later"], "category": "b"}\n{"question": "none"}\n'
    )
    made = FilePrompts(path).make(6, None)
    assert [one.prompt for one in made] == ["a1", "b1", "none", "a2", "a1", "b1"]
    assert [one.kind for one in made] == ["a", "b", "", "a", "a", "b"]
    path.write_text('{"other": "a"}\n')
    with pytest.raises(InvalidRequest, match=r"\[bench\].*record 1: "):
        FilePrompts(path)
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n")
    assert [one.prompt for one in FilePrompts(lines).make(2, None)] == ["one", "two"]
