"""``BatchJob``: one job of the Batch API, as it is kept and as callers see it.

validating -> in_progress -> finalizing -> completed
    |              |              +-> expired, cancelled (by way of cancelling)
    +-> failed     +-> failed (the disk)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

ENDED = ("completed", "failed", "expired", "cancelled")
"""Nothing changes any more."""

_TIMES = (
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@dataclass(frozen=True)
class BatchJob:
    """A job.

    Attributes:
        id, endpoint, input_file_id, completion_window, metadata, created_at: as it was made.
        times: when it came to each state, and when it expires; seconds of Unix time.
        seed: each record's own comes from this and its number.
        result_ids: the files that it will make, of answers and of errors: said before, so that a
            crash while they are written leaves no third one.
        result_seconds: how long these are kept; None for as long as any other.
        status: its state.
        ending: the state that it comes to by finalizing.
        errors: what is wrong with its input, or with the disk.
        total, completed, failed: records.
        output_file_id, error_file_id: those of ``result_ids`` that hold anything.
    """

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    seed: int
    result_ids: tuple[str, str]
    result_seconds: int | None = None
    metadata: Mapping[str, str] | None = None
    times: Mapping[str, int] = field(default_factory=dict)
    status: str = "validating"
    ending: str = "completed"
    errors: tuple[Mapping[str, Any], ...] = ()
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> BatchJob:
        """From what was kept; a KeyError or TypeError where that is no job."""
        kept = {one.name: known[one.name] for one in fields(cls)}
        kept["result_ids"], kept["errors"] = tuple(known["result_ids"]), tuple(known["errors"])
        return cls(**kept)

    @property
    def kept(self) -> dict[str, Any]:
        """What is kept of it."""
        return asdict(self)

    @property
    def expires_at(self) -> int:
        """When what is not done then is given up."""
        return self.times["expires_at"]

    def shown(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        errors = {"object": "list", "data": list(self.errors)} if self.errors else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            **{name: self.times.get(name) for name in _TIMES},
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
        }
