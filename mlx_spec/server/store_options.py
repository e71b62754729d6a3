"""``StoreOptions``: where files and batches of callers are kept, how many and how long."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlx_spec.config.checks import check_integer
from mlx_spec.pipeline.options import option

_store = partial(option, group="Files and batches")
DAY = 86_400


@dataclass(frozen=True)
class StoreOptions:
    """Of ``/v1/files`` and ``/v1/batches``; a part of ``ServerOptions``."""

    store: str | None = _store(
        None,
        "Folder for uploaded files and batches, which go on after a restart. Default: mlx-spec/"
        "store in the user's data folder.",
        metavar="DIR",
        is_path=bool,
    )
    max_store_bytes: int = _store(
        10 * 2**30, "Most bytes that files in the store take together.", metavar="BYTES"
    )
    max_files: int = _store(10_000, "Most files in it.", metavar="N")
    max_batches: int = _store(100, "Most batches that wait or run.", metavar="N")
    max_batch_requests: int = _store(50_000, "Most requests of a batch.", metavar="N")
    store_days: int = _store(30, "Days after which a file, or a batch, is deleted.", metavar="N")

    def check_store(self) -> None:
        """Refuse values outside their ranges.

        Raises:
            InvalidRequest: the first of them.
        """
        for name in ("max_store_bytes", "max_files", "max_batches", "max_batch_requests"):
            check_integer("serve", name, getattr(self, name), 1)
        check_integer("serve", "store_days", self.store_days, 1)

    @property
    def store_folder(self) -> Path:
        """Where it is."""
        if self.store is not None:
            return Path(self.store).expanduser()
        import platformdirs

        return Path(platformdirs.user_data_dir("mlx-spec")) / "store"
