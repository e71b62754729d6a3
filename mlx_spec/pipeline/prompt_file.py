"""Prompts of a file of whatever form: lines of text, or records with a prompt and a category."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.records import format_of, read_records
from mlx_spec.pipeline.stage import Generate
from mlx_spec.pipeline.stages.generate import GenerateText
from mlx_spec.text_files import read_text

_TABLES = (".jsonl", ".ndjson", ".csv", ".parquet", ".pq")
# Where collections of questions have theirs; of a dialogue the first is taken.
_QUESTIONS = ("question", "turns")


@dataclass(frozen=True)
class FoundPrompt:
    """One prompt.

    Attributes:
        place: the line or record that it stands in, for errors.
        category: the record's own word, or empty.
        prompt: a text or chat messages.
    """

    place: str
    category: str
    prompt: Any


def read_prompt_file(path: Path, owner: str) -> list[FoundPrompt]:
    """The prompts of a file: records (``prompt``, ``text`` or ``messages``, as ``mlx-spec batch``
    takes them, or ``turns`` or ``question``; perhaps ``category``), or lines of text.

    Args:
        path: of the file.
        owner: whose errors these are: ``train-draft``.

    Raises:
        InvalidRequest: it cannot be read, has no prompts, or a record has none.
    """
    found = _lines(path, owner) if path.suffix.lower() not in _TABLES else _records(path, owner)
    for one in found:
        if not one.prompt:
            raise InvalidRequest(f"[{owner}] {path} {one.place}: an empty prompt")
    if not found:
        raise InvalidRequest(f"[{owner}] {path}: no prompts in it")
    return found


def _lines(path: Path, owner: str) -> list[FoundPrompt]:
    lines = read_text(path, f"[{owner}] {path}").replace("\r\n", "\n").split("\n")
    return [
        FoundPrompt(f"line {number}", "", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _records(path: Path, owner: str) -> list[FoundPrompt]:
    stage = GenerateText()
    found: list[FoundPrompt] = []
    for record in read_records(path, format_of(path, None)):
        place = f"record {record.number}"
        try:
            if record.error is not None:
                raise InvalidRequest(record.error)
            request = stage.prepare(_with_prompt(record.fields))
        except InvalidRequest as error:
            raise InvalidRequest(f"[{owner}] {path} {place}: {error}") from error
        assert isinstance(request, Generate)
        found.append(FoundPrompt(place, str(record.fields.get("category") or ""), request.prompt))
    return found


def _with_prompt(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record's fields, with the question that it has in the place of a prompt."""
    if any(fields.get(name) not in (None, "") for name in ("prompt", "text", "messages")):
        return fields
    for name in _QUESTIONS:
        value = fields.get(name)
        if isinstance(value, list) and value and isinstance(value[0], str):
            value = value[0]
        if isinstance(value, str):
            return {**fields, "prompt": value}
    return fields
