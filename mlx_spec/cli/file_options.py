"""``FileOptions``: how a run over files goes, as the commands over them take it."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.options import option


@dataclass(frozen=True)
class FileOptions:
    """What to read, what to do with an output that is there, and what to say.

    Raises:
        InvalidRequest: a limit below 1, or options that contradict each other.
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

    ray: str | None = option(
        None,
        "Over all machines of a Ray cluster: auto (the one that runs here), HOST:PORT, or local "
        "(start one here). Alone it means auto. Needs mlx-spec[ray].",
        group="More machines",
        metavar="[ADDRESS]",
    )
    ray_workers: int | None = option(
        None,
        "Workers in all, each with a model of its own; one a machine where not given.",
        group="More machines",
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.ray_workers is not None and (self.ray is None or self.ray_workers < 1):
            raise InvalidRequest(
                f"[flags] --ray-workers {self.ray_workers}, expected at least 1, with --ray"
            )
        if self.ray is not None and self.performance_log is not None:
            raise InvalidRequest("[flags] --performance-log is of one machine; not with --ray")
        if self.overwrite and self.goes_on:
            on = "--resume" if self.resume else "--retry-failed"
            raise InvalidRequest(f"[flags] {on} goes on with OUT, --overwrite begins again: choose")
        if self.limit is not None and self.limit < 1:
            raise InvalidRequest(f"[flags] --limit {self.limit}, expected at least 1")

    @property
    def goes_on(self) -> bool:
        """Whether a run that was interrupted is continued."""
        return self.resume or self.retry_failed
