"""The words of a report: what each figure means, in a sentence, in the order of the tables."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "What ran": ("requests", "prompt tokens", "tokens", "preempted", "errors", "log"),
    "Speed": (
        "busy",
        "throughput",
        "occupancy",
        "acceptance",
        "by drafter",
        "tokens a pass",
        "peak memory",
    ),
    "Times (p50 / p90 / p99)": ("TTFT", "ITL", "TPOT", "queue time", "goodput"),
}
"""Title of a table -> its figures."""

TERMS: dict[str, str] = {
    "prompt tokens": "of the requests that ended; reused ones came from the prefix cache and were "
    "not computed again",
    "tokens": "generated",
    "preempted": "requests that had to wait again for a more urgent one",
    "log": "complete when the run closed it; else the run was killed or still goes on",
    "busy": "time in which requests held rows of the batch; pauses of half a second and more are "
    "left out",
    "throughput": "generated tokens over all requests, per busy second",
    "occupancy": "rows in use in the mean step, of the batch size; few rows mean that few requests "
    "were there, not that something is wrong",
    "acceptance": "share of the guessed tokens that the target confirmed",
    "by drafter": "the same of each source of guesses, and how many it made",
    "tokens a pass": "tokens that a row gains when the target reads once; 1 without a draft",
    "peak memory": "most that MLX held, models included",
    "p50 / p90 / p99": "half, 90% and 99% of the values are at most this",
    "TTFT": "time to first token, from the submission on",
    "ITL": "inter-token latency, the gap between two times at which a reader was handed tokens; an "
    "accepted draft hands out several at once, so it may lie above TPOT",
    "TPOT": "time per output token, over all of a request's tokens after the first",
    "queue time": "from the submission until the request got a row",
    "goodput": "requests within the limits that were asked for, per busy second",
}
"""Term -> what it means; ``requests`` and ``errors`` speak for themselves."""
