"""Records of a file as Ray Data reads them: in chunks, each a row, on the machine of the command.

What is done already is left out where it is read, so that nothing is sent for it. Records go as
they are read here, errors included; a chunk is the same however often it is read again.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mlx_spec.pipeline.records import Record, read_records

CHUNK = "chunk"
"""The one column."""


@dataclass(frozen=True)
class SourceFile:
    """What is to be read.

    Attributes:
        path, format: the file.
        skip: at a record's number something else than 0: it is done; numbers behind it are not.
        limit: only so many of its first records; None for all.
        chunk: records that go to a worker together.
    """

    path: Path
    format: str
    skip: bytes
    limit: int | None
    chunk: int

    def left(self) -> Iterator[Record]:
        """The records that are not done."""
        records = itertools.islice(read_records(self.path, self.format), self.limit)
        done = self.skip
        return (one for one in records if one.number >= len(done) or not done[one.number])


class RecordSource(Datasource):
    """Reads one file in one task, which Ray holds back while its chunks are not taken."""

    def __init__(self, file: SourceFile) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._file = file

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
        about = BlockMetadata(None, None, None, input_files=None)
        return [ReadTask(partial(_chunks, self._file), about)]

    def estimate_inmemory_data_size(self) -> int | None:
        return self._file.path.stat().st_size

    @property
    def supports_distributed_reads(self) -> bool:
        """The file is here and, for all that is known, nowhere else."""
        return False


def _chunks(file: SourceFile) -> Iterator[Any]:
    import pyarrow

    left = file.left()
    while records := list(itertools.islice(left, file.chunk)):
        cell = pyarrow.array([pickle.dumps(records)], pyarrow.large_binary())
        yield pyarrow.table({CHUNK: cell})
