"""What went wrong with records, by kind: a summary names the first of each and counts the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NUMBER = "_record"
FAILED = "_failed"
ERROR = "error"
# Errors of one kind differ in names and numbers only.
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_MOST_KINDS = 1000
_SHOWN_KINDS = 3


@dataclass
class _Kind:
    number: int
    text: str
    count: int = 0


@dataclass
class Failures:
    """Counts the records that carry an error.

    Attributes:
        count: all of them, those of earlier runs whose texts are not known included.
    """

    count: int = 0
    _kinds: dict[str, _Kind] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        if not record.get(FAILED):
            return
        self.count += 1
        error = record.get(ERROR)
        # In the words of an API it is an object.
        text = str(error.get("message") if isinstance(error, Mapping) else error)
        kind = _PARTICULARS.sub("*", text.partition("; ")[0])  # behind it comes what there is
        if kind in self._kinds or len(self._kinds) < _MOST_KINDS:
            self._kinds.setdefault(kind, _Kind(int(record[NUMBER]), text)).count += 1

    def lines(self) -> list[str]:
        """The most frequent kinds, each with its first record."""
        kinds = sorted(self._kinds.values(), key=lambda kind: (-kind.count, kind.number))
        lines = [
            f"Error in {_records(kind.count)}, first in record {kind.number}: {kind.text}"
            for kind in kinds[:_SHOWN_KINDS]
        ]
        if len(kinds) > _SHOWN_KINDS:
            left = sum(kind.count for kind in kinds[_SHOWN_KINDS:])
            lines.append(f"Other errors in {_records(left)}")
        return lines


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"
