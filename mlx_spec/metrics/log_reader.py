"""Reads performance logs back, as they are found: cut off, mixed with foreign files, incomplete.

What cannot be used is named in ``problems`` and left out; it never stops the reading. It never
writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.metrics.log_lines import FORMAT, Line

# What a report itself leaves in a folder.
_OURS = (".html", ".png")
# Fields that must be numbers for a line to be of use, and those that may also be null.
_NEEDED = {
    "inference": "t seconds tokens tok_s drafted accepted draft_length rows row_steps batch_size "
    "peak_memory",
    "request": "t generation_tokens",
    "stage": "t items seconds errors",
}
_NULLABLE = {"request": "ttft tpot acceptance queue_time"}
# A bucket of gaps beyond these (1e-17 s, 1e17 s) was not written by us.
_MOST_BUCKET = 2000


@dataclass
class RunLog:
    """All lines of one run.

    Attributes:
        run: its name.
        header: of its first file that is there.
        inference, requests, stages, errors: the lines of these kinds, in order.
        end: the closing line; None if the run was not closed (or still runs).
        preempted: how often.
    """

    run: str
    header: Line
    inference: list[Line] = field(default_factory=list)
    requests: list[Line] = field(default_factory=list)
    stages: list[Line] = field(default_factory=list)
    errors: list[Line] = field(default_factory=list)
    end: Line | None = None
    preempted: int = 0

    def add(self, record: Line) -> None:
        """Sort a line in; kinds of later versions are passed over."""
        kind = record["kind"]
        if kind == "end":
            self.end = record
        elif kind == "event":
            self.preempted += record.get("event") == "preempted"
        else:
            lists = {
                "inference": self.inference,
                "request": self.requests,
                "stage": self.stages,
                "error": self.errors,
            }
            if kind in lists:
                lists[kind].append(record)


@dataclass(frozen=True)
class Problem:
    """Something in a folder of logs that was left out, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_logs(path: Path) -> tuple[list[RunLog], list[Problem]]:
    """The runs under a folder (or of one file), oldest first, and what was left out.

    Raises:
        InvalidRequest: there is nothing at ``path``, or it cannot be listed.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        if not path.exists():
            raise InvalidRequest(f"[report] {path}: no such file or folder")
    except OSError as error:
        raise InvalidRequest(f"[report] {path}: {error.strerror}") from error
    problems: list[Problem] = []
    parts: list[tuple[Line, list[Line]]] = []
    for file in files:
        if file.suffix in _OURS:
            continue
        part = _read_file(file, problems)
        if part is not None:
            parts.append(part)
    parts.sort(key=lambda part: (str(part[0].get("started")), part[0]["run"], part[0]["part"]))
    runs: dict[str, RunLog] = {}
    for header, records in parts:
        run = runs.setdefault(header["run"], RunLog(header["run"], header))
        for record in records:
            run.add(record)
    for run in runs.values():
        _tile(run.inference)
    return list(runs.values()), problems


def _tile(lines: list[Line]) -> None:
    """Give each line its ``start``, never before the end of the line before it.

    Lines written by older versions may overlap, and tell rates over less time than their steps
    took; those come down to what can have been.
    """
    end = float("-inf")
    for line in lines:
        line["start"] = max(line["t"] - line["seconds"], end)
        end = max(end, line["t"])
        parts = (line.get("decode_seconds"), line.get("prefill_seconds"))
        work = sum(part for part in parts if isinstance(part, (int, float)))
        if work > line["seconds"]:
            line["tok_s"] = min(line["tok_s"], line["tokens"] / work)


def _read_file(path: Path, problems: list[Problem]) -> tuple[Line, list[Line]] | None:
    """Header and lines of one file; None if it is no log of ours."""
    if path.is_dir():
        problems.append(Problem(path, "is a folder, not read"))
        return None
    if path.suffix != ".jsonl":
        problems.append(Problem(path, "not a performance log (no .jsonl), not read"))
        return None
    try:
        text = path.read_bytes()
    except OSError as error:
        problems.append(Problem(path, f"cannot be read: {error.strerror}"))
        return None
    lines = text.split(b"\n")
    cut = lines.pop() != b""  # a whole line ends with a line break
    header = _parse(lines[0]) if lines else None
    if header is None or header["kind"] != "header" or not isinstance(header.get("run"), str):
        problems.append(Problem(path, "not a performance log (no header line), not read"))
        return None
    if header.get("format") != FORMAT or not isinstance(header.get("part"), int):
        reason = f"log format {header.get('format')!r}; this version reads {FORMAT}, not read"
        problems.append(Problem(path, reason))
        return None
    records, bad = _records(lines[1:])
    if bad:
        numbers = ", ".join(str(number) for number in bad[:5]) + (" ..." if len(bad) > 5 else "")
        problems.append(Problem(path, f"{len(bad)} unreadable lines left out: {numbers}"))
    if cut:
        problems.append(Problem(path, "its last line is cut off (killed, or still written)"))
    return header, records


def _records(lines: list[bytes]) -> tuple[list[Line], list[int]]:
    """The usable lines, and the numbers of the others."""
    records, bad = [], []
    for number, line in enumerate(lines, start=2):
        record = _parse(line)
        if record is not None and all(_valid(record)):
            records.append(record)
        else:
            bad.append(number)
    return records, bad


def _parse(line: bytes) -> Line | None:
    """A line as a record with a kind; None if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # bad UTF-8 is a ValueError too
        return None
    valid = isinstance(record, dict) and isinstance(record.get("kind"), str)
    return record if valid else None


def _valid(record: Line) -> Iterator[bool]:
    """Whether each field that a report reads is what it must be."""
    kind = record["kind"]
    for name in _NEEDED.get(kind, "").split():
        yield _is_number(record.get(name))
    for name in _NULLABLE.get(kind, "").split():
        yield record.get(name) is None or _is_number(record[name])
    if kind == "inference":
        gaps = record.get("itl")
        yield isinstance(gaps, dict) and all(_is_bucket(*pair) for pair in gaps.items())


def _is_number(value: Any) -> bool:
    valid = isinstance(value, (int, float)) and not isinstance(value, bool)
    return valid and math.isfinite(value)


def _is_bucket(key: str, count: Any) -> bool:
    digits = key.removeprefix("-")
    valid = digits.isdecimal() and len(digits) < 5 and int(digits) <= _MOST_BUCKET
    return valid and type(count) is int and count > 0
