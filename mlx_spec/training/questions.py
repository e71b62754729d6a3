"""What the target is asked: the user's prompts, and which of them are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.records import format_of, read_records
from mlx_spec.pipeline.stage import Generate
from mlx_spec.pipeline.stages.generate import GenerateText
from mlx_spec.text_files import read_text

# One question in so many is never trained on, and measures what was reached.
HELD_OUT = 10
_TABLES = (".jsonl", ".ndjson", ".csv", ".parquet", ".pq")


@dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes:
        id: a hash of what it says, so that a longer file of prompts keeps what is done.
        category: the record's own word, or empty.
        prompt: a text or chat messages.
    """

    id: str
    category: str
    prompt: Any

    def held_out(self, categories: Seq[str]) -> bool:
        """Whether it is kept from training: its category is, or its hash says so."""
        return self.category in categories or int(self.id, 16) % HELD_OUT == 0


def read_questions(path: Path) -> list[Question]:
    """The prompts of a file, each once: records (``prompt``, ``text`` or ``messages``, as
    ``mlx-spec batch`` takes them, and perhaps ``category``), or lines of text.

    Raises:
        InvalidRequest: it cannot be read, or a record has no prompt.
    """
    found: dict[str, Question] = {}
    for place, category, prompt in _prompts(path):
        if not prompt:
            raise InvalidRequest(f"[train-draft] {path} {place}: an empty prompt")
        name = hashlib.blake2b(repr(prompt).encode(), digest_size=8).hexdigest()
        found.setdefault(name, Question(name, category, prompt))
    if not found:
        raise InvalidRequest(f"[train-draft] {path}: no prompts in it")
    return list(found.values())


def _prompts(path: Path) -> list[tuple[str, str, Any]]:
    """(place, category, prompt) of each."""
    if path.suffix.lower() not in _TABLES:
        lines = read_text(path, f"[train-draft] {path}").replace("\r\n", "\n").split("\n")
        return [
            (f"line {number}", "", line)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
    stage = GenerateText()
    found: list[tuple[str, str, Any]] = []
    for record in read_records(path, format_of(path, None)):
        place = f"record {record.number}"
        try:
            if record.error is not None:
                raise InvalidRequest(record.error)
            request = stage.prepare(record.fields)
        except InvalidRequest as error:
            raise InvalidRequest(f"[train-draft] {path} {place}: {error}") from error
        assert isinstance(request, Generate)
        found.append((place, str(record.fields.get("category") or ""), request.prompt))
    return found
