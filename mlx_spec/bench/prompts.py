"""What a model is asked while it is measured: built-in prompts of four kinds, or a file's.

Built-in prompts are made of whole sentences and whole functions (``texts/``), as many as come
nearest to the length asked for, with a task behind them, so that they make sense at any length.
Knows no mlx.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.prompt_file import read_prompt_file

KINDS = ("chat", "code", "summarise", "rewrite")
"""A model's own words; code; a text in fewer words; a text in nearly the same words."""

_TEXTS = Path(__file__).with_name("texts")
_ABOUT = {"chat": "chat, about a text", "code": "code, about functions"}
_TITLES_FROM = 64  # tokens of a prompt that has room for the titles of its texts
_SENTENCE = re.compile(r"(?<=[.?!]) ")
_MISSING = 0.8  # of the length asked for must be reached


@dataclass(frozen=True)
class BenchPrompt:
    """One prompt.

    Attributes:
        kind: one of ``KINDS``; of a file's its category, perhaps empty.
        prompt: a text or chat messages.
    """

    kind: str
    prompt: Any


class PromptSource(Protocol):
    """Where prompts come from."""

    def make(self, count: int, length: int | None) -> list[BenchPrompt]:
        """So many prompts, about ``length`` tokens each where they can be made so; the first of
        more are those of fewer, of all kinds in turn.

        Raises:
            InvalidRequest: they cannot be so long.
        """


class FilePrompts:
    """The prompts of a file, as long as they are, categories in turn.

    Raises:
        InvalidRequest: as ``read_prompt_file``.
    """

    def __init__(self, path: Path) -> None:
        by_category: dict[str, list[BenchPrompt]] = {}
        for one in read_prompt_file(path, "bench"):
            by_category.setdefault(one.category, []).append(BenchPrompt(one.category, one.prompt))
        longest = max(map(len, by_category.values()))
        self.prompts = [
            prompts[turn]
            for turn in range(longest)
            for prompts in by_category.values()
            if turn < len(prompts)
        ]

    def make(self, count: int, length: int | None) -> list[BenchPrompt]:
        """The first of them; where there are too few, from the first again."""
        return [self.prompts[index % len(self.prompts)] for index in range(count)]


class BuiltInPrompts:
    """Ours.

    Args:
        tokens: how many a text has.
        overhead: tokens that the chat template adds to a prompt.
    """

    def __init__(self, tokens: Callable[[str], int], overhead: int = 0) -> None:
        self._tokens, self._overhead = tokens, overhead
        self._known: dict[str, int] = {}

    def make(self, count: int, length: int | None) -> list[BenchPrompt]:
        """As the protocol says; a prompt is never shorter than a question, or than a sentence and
        what to do with it."""
        wanted = 0 if length is None else max(0, length - self._overhead)
        return [self._one(KINDS[index % 4], index // 4, wanted) for index in range(count)]

    def _one(self, kind: str, turn: int, wanted: int) -> BenchPrompt:
        """One prompt; another one for every turn, until texts and tasks have all met."""
        tasks = questions()
        # Behind the last function texts follow: a document of both.
        materials = functions() if kind == "code" else passages()
        about = tasks[_ABOUT.get(kind, kind)]
        task = about[(turn + turn // len(materials)) % len(about)]
        start = (5 * turn + 3 * KINDS.index(kind)) % len(materials)
        around = [*materials[start:], *materials[:start], *(passages() if kind == "code" else ())]
        # Nobody asks for two texts at once: a question of its own comes first.
        alone = tasks[kind][turn % len(tasks[kind])] if kind in _ABOUT else None
        first = around[0].pieces[0]
        if alone is not None and self._length(task) + self._length(first) / 2 > wanted:
            return BenchPrompt(kind, alone)
        text = self._filled(around, wanted - self._length(task), wanted >= _TITLES_FROM)
        return BenchPrompt(kind, f"{text}\n\n{task}")

    def _filled(self, materials: Seq[Material], room: int, titled: bool) -> str:
        """As many pieces as come nearest to ``room`` tokens, one at least."""
        parts: list[str] = []
        used = 0.0
        for material in materials:
            pieces: list[str] = []
            for piece in material.pieces:
                cost = self._length(piece)
                if (parts or pieces) and used + cost / 2 > room:
                    return "\n\n".join([*parts, material.joined(pieces, titled)]).strip()
                pieces.append(piece)
                used += cost
            parts.append(material.joined(pieces, titled))
        if used < _MISSING * room:
            raise InvalidRequest(
                f"[bench] --prompt-lengths: {room} tokens of text asked, the built-in ones have "
                f"{used:.0f} here; give longer prompts with --prompts FILE"
            )
        return "\n\n".join(parts)

    def _length(self, text: str) -> int:
        """Tokens of a text, counted once."""
        if text not in self._known:
            self._known[text] = self._tokens(text)
        return self._known[text]


@dataclass(frozen=True)
class Material:
    """A text or a function: what a prompt can be filled with, and where it may be cut.

    Attributes:
        title: of a text; empty for a function.
        pieces: its sentences; a function is one piece.
    """

    title: str
    pieces: tuple[str, ...]

    def joined(self, pieces: Seq[str], titled: bool) -> str:
        """Its first pieces, under the title where that is wanted; nothing of none."""
        if not pieces:
            return ""
        return (f"{self.title}\n\n" if titled and self.title else "") + " ".join(pieces)


@cache
def passages() -> tuple[Material, ...]:
    """The texts."""
    found = []
    for part in _read("passages")[1:]:
        title, _, text = part.partition("\n")
        found.append(Material(title, tuple(_SENTENCE.split(" ".join(text.split())))))
    return tuple(found)


@cache
def functions() -> tuple[Material, ...]:
    """The functions."""
    text = (_TEXTS / "functions.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return tuple(Material("", (source.strip(),)) for source in found)


@cache
def questions() -> dict[str, tuple[str, ...]]:
    """Tasks by kind."""
    found = {}
    for part in _read("questions")[1:]:
        kind, _, lines = part.partition("\n")
        found[kind] = tuple(line[2:] for line in lines.splitlines() if line.startswith("- "))
    return found


def _read(name: str) -> list[str]:
    """The parts of a file between its headings."""
    return re.split(r"^## ", (_TEXTS / f"{name}.md").read_text(encoding="utf-8"), flags=re.M)
