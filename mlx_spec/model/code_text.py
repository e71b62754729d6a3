"""``source_of``: the text of a class or function, one thread at a time.

For every class ``inspect`` parses its whole module, which was half a second of each process's first
model. Here a module is parsed once for all its classes. Python 3.11 counts how deep a parser stands
for all threads together: two at once may end in a ``SystemError`` (python/cpython#106905).
"""

from __future__ import annotations

import ast
import inspect
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

_ONE = threading.Lock()
_TRIES = 5  # others' threads may be parsing too


def source_of(code: Any) -> str | None:
    """Its text; None where there is none (a builtin, or made without a source)."""
    with _ONE:
        for left in reversed(range(_TRIES)):
            try:
                found = _of_module(code) if isinstance(code, type) else None
                return found or inspect.getsource(code)
            except (OSError, TypeError):
                return None
            except SystemError:
                if not left:
                    raise
    return None


def _of_module(cls: type) -> str | None:
    """A class as its module has it; None where that has no file, or two classes of this name."""
    try:
        module = inspect.getsource(sys.modules[cls.__module__])
    except (KeyError, OSError, TypeError):
        return None
    return _classes(module).get(cls.__qualname__)


@lru_cache(maxsize=32)
def _classes(module: str) -> dict[str, str]:
    """The text of each class of a module, by its qualified name."""
    lines = module.split("\n")
    nodes = list(_named(ast.parse(module), ""))
    often = Counter(name for name, _ in nodes)
    return {
        name: "\n".join(lines[_first_line(node) - 1 : node.end_lineno]) + "\n"
        for name, node in nodes
        if often[name] == 1
    }


def _first_line(node: ast.ClassDef) -> int:
    return min([node.lineno, *(one.lineno for one in node.decorator_list)])


def _named(parent: ast.AST, path: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef):
            yield path + node.name, node
            yield from _named(node, f"{path}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _named(node, f"{path}{node.name}.<locals>.")
        else:
            yield from _named(node, path)
