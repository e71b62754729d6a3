"""``FileOptions``: how a run over files goes, as the commands over them take it."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.options import option


@dataclass(frozen=True)
class FileOptions:
    """What to read, what to do with an output that is there, and what to say.

    Raises:
        InvalidRequest: a limit below 1.
    """

    resume: bool = option(False, "Go on where an interrupted run stopped; else begin.")
    retry_failed: bool = option(
        False, "As --resume, and run again what has an error; other options may be new."
    )
    overwrite: bool = option(False, "Begin again if OUT exists.")
    limit: int | None = option(None, "Only the first N records.", metavar="N")
    format: str | None = option(None, "jsonl, csv or parquet, where a name does not say it.")
    quiet: bool = option(False, "No progress, no statistics.", "-q")
    performance_log: str | None = option(
        None, "Write figures there as JSON lines.", group="Output", metavar="DIR"
    )

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InvalidRequest(f"[flags] --limit {self.limit}, expected at least 1")

    @property
    def goes_on(self) -> bool:
        """Whether a run that was interrupted is continued."""
        return self.resume or self.retry_failed
