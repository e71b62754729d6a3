"""Records from a pipe that may stay silent: what has come goes on while the next is awaited.

Reading a pipe blocks, so a thread of its own reads; whoever walks the records hears "nothing yet"
in between and can see to what is under way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from mlx_spec.pipeline.records import Record

# How long a record is awaited before "nothing yet" is said; a result waits as long at most.
_PATIENCE = 0.02

Arrivals: TypeAlias = Iterable[Record | None]
"""Records, and None where the next one has not come yet."""


def arriving(records: Iterable[Record], ahead: int = 16) -> Iterator[Record | None]:
    """The records as they come, and None while there is none.

    Args:
        records: walked in a thread, which ends with them or with the process.
        ahead: most records that are read before they are asked for.

    Raises:
        Exception: whatever reading raised, in its turn.
    """
    box: queue.Queue[Record | BaseException | None] = queue.Queue(ahead)
    closed = threading.Event()
    threading.Thread(target=_read, args=(records, box, closed), daemon=True).start()
    try:
        while True:
            try:
                found = box.get(timeout=_PATIENCE)
            except queue.Empty:
                yield None
                continue
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        closed.set()


def _read(
    records: Iterable[Record],
    box: queue.Queue[Record | BaseException | None],
    closed: threading.Event,
) -> None:
    try:
        for record in records:
            _put(record, box, closed)
            if closed.is_set():
                return
        last: BaseException | None = None
    except BaseException as error:  # raised where the records are walked
        last = error
    _put(last, box, closed)


def _put(
    item: Record | BaseException | None,
    box: queue.Queue[Record | BaseException | None],
    closed: threading.Event,
) -> None:
    """Wait for room, but not for a reader that has gone."""
    while not closed.is_set():
        try:
            box.put(item, timeout=0.1)
        except queue.Full:
            continue
        return
