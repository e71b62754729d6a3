"""Records as Ray Data reads them: in chunks, each a row, on the machine of the command.

What is done already is left out where it is read, so that nothing is sent for it. Records go as
they are read here, errors included; a chunk is the same however often it is read again.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mlx_spec.pipeline.records import Reader, Record

CHUNK = "chunk"
"""The one column."""


@dataclass(frozen=True)
class ChunkSource:
    """What is to be read.

    Attributes:
        read: gives the records.
        skip: at a record's number something else than 0: it is done; numbers behind it are not.
        limit: only so many of its first records; None for all.
        chunk: records that go to a worker together.
        pace: the run's :class:`RunPace`, an actor.
    """

    read: Reader
    skip: bytes
    limit: int | None
    chunk: int
    pace: Any = None

    def left(self) -> Iterator[Record]:
        """The records that are not done."""
        records = itertools.islice(self.read(), self.limit)
        done = self.skip
        return (one for one in records if one.number >= len(done) or not done[one.number])

    def chunks(self) -> Iterator[list[Record]]:
        """They in chunks, each when the run has come near it."""
        left = self.left()
        for number in itertools.count():
            ray.get(self.pace.wait.remote(number))
            if not (records := list(itertools.islice(left, self.chunk))):
                return
            yield records


class RecordSource(Datasource):
    """Reads them in one task."""

    def __init__(self, source: ChunkSource) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source = source

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
        about = BlockMetadata(None, None, None, input_files=None)
        return [ReadTask(partial(_blocks, self._source), about)]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    @property
    def supports_distributed_reads(self) -> bool:
        """The file is here and, for all that is known, nowhere else."""
        return False


def _blocks(source: ChunkSource) -> Iterator[Any]:
    import pyarrow

    for records in source.chunks():
        cell = pyarrow.array([pickle.dumps(records)], pyarrow.large_binary())
        yield pyarrow.table({CHUNK: cell})
