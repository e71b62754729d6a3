"""Sources are read by one thread at a time, and again where another's parser was in the way."""

from __future__ import annotations

import ast
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from mlx_lm.models import gemma3n, llama, qwen3_next

from mlx_spec.model import code_text
from mlx_spec.model.code_text import source_of


def test_what_has_no_source_has_none() -> None:
    assert source_of(len) is None
    assert "class Made" not in (source_of(type("Made", (), {})) or "")
    text = source_of(test_what_has_no_source_has_none)
    assert text is not None
    assert text.startswith("def test_what")


class Outer:
    @dataclass
    class Inner:
        number: int = 1

    def make(self) -> type:
        class Local:
            number = 1

        return Local


class Twice:
    number = 1


class Twice:  # type: ignore[no-redef]  # noqa: F811
    number = 2


def test_a_class_reads_as_inspect_reads_it() -> None:
    """Decorated, nested, made by a function, or one of two; and those of models."""
    classes = [Outer, Outer.Inner, Outer().make(), Twice]
    for module in (llama, qwen3_next, gemma3n):
        classes += [one for one in vars(module).values() if isinstance(one, type)]
    assert len(classes) > 40
    for one in classes:
        assert source_of(one) == inspect.getsource(one), one


def test_a_module_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops what ``inspect`` does before Python 3.13: as often as the module has classes."""
    parsed: list[Any] = []
    own = ast.parse
    monkeypatch.setattr(ast, "parse", lambda *given: parsed.append(given) or own(*given))
    code_text._classes.cache_clear()
    for one in (llama.Attention, llama.MLP, llama.Model, llama.Attention):
        assert source_of(one)
    assert len(parsed) == 1


def test_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Lock()
    together = threading.Barrier(4)

    def slow(code: Any) -> str:
        assert inside.acquire(blocking=False), "two at once"
        threading.Event().wait(0.01)
        inside.release()
        return str(code)

    def ask(number: int) -> str | None:
        together.wait(10)
        return source_of(number)

    monkeypatch.setattr(inspect, "getsource", slow)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["0", "1", "2", "3"]


def test_a_parser_that_was_disturbed_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [SystemError("AST constructor recursion depth mismatch")] * 2

    def disturbed(code: Any) -> str:
        if left:
            raise left.pop()
        return "text"

    monkeypatch.setattr(inspect, "getsource", disturbed)
    assert source_of(object) == "text"
    left += [SystemError("again")] * 9
    with pytest.raises(SystemError):
        source_of(object)
