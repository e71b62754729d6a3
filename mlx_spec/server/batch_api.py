"""``BatchApi``: the store, and the thread that runs what is in it, for as long as the server runs.

The folder is opened at the start where it exists, since batches may wait in it, and else made when
the first file comes. Where another server uses it, or the disk refuses, everything but files and
batches works; they say why they do not.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mlx_spec.batching.closing import Closing
from mlx_spec.errors import MlxSpecError, OutputError
from mlx_spec.pipeline.backend import Generation
from mlx_spec.pipeline.stage import LoadedModel
from mlx_spec.server.batch_job import BatchJob
from mlx_spec.server.batch_shelf import BatchShelf, TooManyBatches
from mlx_spec.server.batch_work import BatchWork
from mlx_spec.server.files import FileShelf
from mlx_spec.server.limited_records import LimitedRecords
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.refusals import refused
from mlx_spec.server.service import Service
from mlx_spec.server.store import NoSuchThing, Store, StoreFull

LOG = logging.getLogger("mlx_spec.server")
# Below any caller's, however long one of ours has waited.
PRIORITY = -1_000_000


class BatchApi(Closing):
    """A context manager of the server's life.

    Args:
        service: has the generator.
        options: where the store is, and limits.
    """

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service, self._options = service, options
        self._lock = threading.Lock()
        self._held = ExitStack()
        self._shelf: BatchShelf | None = None

    def __enter__(self) -> BatchApi:
        if self._options.store_folder.is_dir():
            try:
                self.shelf()
            except OutputError as error:
                LOG.warning("no files and batches: %s", error)
        return self

    def close(self) -> None:
        """Nothing more is begun, and what runs is given up."""
        with self._lock:
            self._held.close()

    def shelf(self) -> BatchShelf:
        """Files and batches.

        Raises:
            OutputError: the store cannot be used.
        """
        with self._lock:
            if self._shelf is None:
                store = Store(self._options.store_folder)
                self._held.callback(store.close)
                files = FileShelf(store, self._options)
                shelf = BatchShelf(store, files, self._options)
                self._held.enter_context(self._work(shelf))
                self._shelf = shelf
            return self._shelf

    def _work(self, shelf: BatchShelf) -> BatchWork:
        service, served = self._service, self._service.served
        model = LoadedModel(
            served.name, served.tokenizer, served.context, served.defaults, served.chat
        )

        def stage(job: BatchJob) -> LimitedRecords:
            return LimitedRecords(job.created_at, job.id, limit=service.limited)

        return BatchWork(
            shelf,
            Generation(service.generator, model, PRIORITY),
            stage,
            # As many as the rows, and as many again that follow at once.
            rows=2 * service.rows,
            most=self._options.max_batch_requests,
            leaving=lambda: service.draining or not service.healthy,
        )

    @contextmanager
    def told(self) -> Iterator[BatchShelf]:
        """The shelf; what it raises in the block is told to the caller.

        Raises:
            Refused: in HTTP's words.
        """
        try:
            yield self.shelf()
        except NoSuchThing as error:
            raise refused(404, str(error)) from error
        except TooManyBatches as error:
            raise refused(429, str(error), "too_many_batches", 60.0) from error
        except StoreFull as error:
            raise refused(507, _words(error), "storage_full") from error
        except OutputError as error:
            LOG.error("store: %s", error)
            raise refused(503, _words(error), "storage_error") from error


def _words(error: MlxSpecError) -> str:
    return str(error).removeprefix("[store] ").removeprefix("[store]: ")
