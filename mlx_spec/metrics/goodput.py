"""Goodput: what was served within limits that the user gives."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a request must meet to count as goodput, in seconds; None for no such limit."""

    ttft: float | None = None
    tpot: float | None = None

    def __bool__(self) -> bool:
        return self.ttft is not None or self.tpot is not None

    def met(self, ttft: float | None, tpot: float | None) -> bool:
        """Whether a request is within them; one without a first token never is."""
        return (
            ttft is not None
            and (self.ttft is None or ttft <= self.ttft)
            and (self.tpot is None or tpot is None or tpot <= self.tpot)
        )


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Goodput:
    """What was served within limits.

    Attributes:
        requests: ended requests that met them.
        share: of the requests that ended by themselves.
        per_second: requests within the limits, per second of the run.
    """

    requests: int
    share: float
    per_second: float

    @classmethod
    def of(
        cls, latencies: Seq[tuple[float | None, float | None]], seconds: float, limits: Limits
    ) -> Goodput:
        good = sum(limits.met(ttft, tpot) for ttft, tpot in latencies)
        share = good / len(latencies) if latencies else 0.0
        return cls(good, share, good / seconds if seconds > 0 else 0.0)
