"""What is wrong with the input of a batch, found before any of it is run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.records import Record, read_records

MOST_FAULTS = 100  # that are told of one input
_MOST_NAME = 512  # characters of a custom_id


class BatchInput:
    """Looks at records one by one.

    Args:
        endpoint: the one that all of them must name.
        most: records.
    """

    def __init__(self, endpoint: str, most: int) -> None:
        self._endpoint, self._most = endpoint, most
        self._seen: set[bytes] = set()
        self.total = 0
        self.faults: list[dict[str, Any]] = []

    def look(self, path: Path) -> None:
        """Look at all of a file."""
        try:
            for record in read_records(path, "jsonl"):
                self.total += 1
                if self.total > self._most:
                    return self._add("too_many_requests", None, f"more than {self._most} requests")
                self._check(record)
                if len(self.faults) >= MOST_FAULTS:
                    return None
        except InvalidRequest as error:  # the file as a whole
            return self._add("invalid_json_line", None, str(error))
        if not self.total:
            self._add("empty_file", None, "the input file holds no requests")
        return None

    def _check(self, record: Record) -> None:
        fields, line = record.fields, record.number
        if record.error is not None:
            return self._add("invalid_json_line", line, record.error)
        name = fields.get("custom_id")
        if not isinstance(name, str) or not 0 < len(name) <= _MOST_NAME:
            return self._add("invalid_custom_id", line, "custom_id must be a text", "custom_id")
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._seen:
            return self._add(
                "duplicate_custom_id", line, f"custom_id {name[:64]!r} is there twice", "custom_id"
            )
        self._seen.add(digest)
        if fields.get("method") != "POST":
            return self._add("invalid_method", line, "method must be POST", "method")
        if fields.get("url") != self._endpoint:
            return self._add(
                "mismatched_url", line, f"url must be the batch's, {self._endpoint}", "url"
            )
        if not isinstance(fields.get("body"), dict):
            return self._add("invalid_body", line, "body must be a JSON object", "body")
        return None

    def _add(self, code: str, line: int | None, message: str, param: str | None = None) -> None:
        self.faults.append({"code": code, "line": line, "message": message, "param": param})
