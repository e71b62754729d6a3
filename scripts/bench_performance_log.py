"""What the performance log costs a step: the time spent telling it, and runs with and without.

Two figures for each batch size. *In the step*: processor time that the stepping thread spends in
the event feed and the log, as a share of the time of all steps, and the dearest single call; it
is processor time, so that other processes' turns do not count.
*With / without*: wall time of whole runs, interleaved, as the median of ratios within a round;
it has the writer's thread in it, and the noise of the machine. The last line is JSON.

    python scripts/bench_performance_log.py --batch 1 8 32 --rounds 9
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import mlx_spec.model  # noqa: F401  the fast BLAS is loaded before mlx
from mlx_spec import BatchingConfig, SamplingParams, load
from mlx_spec.api import stream_batch_generate
from mlx_spec.batching.stream import BatchStream
from mlx_spec.metrics import PerformanceLog


class Timed:
    """Stands where the engine's reporter stands, and times every call."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter
        self.calls: list[float] = []

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._reporter, name)

        def timed(*arguments: Any) -> None:
            before = time.thread_time()
            begin = time.thread_time()
            method(*arguments)
            end = time.thread_time()
            # Reading the clock is a system call, and right after a step a slow one.
            self.calls.append(end - begin - (begin - before))

        return timed


def make_stream(pair: Any, draft: Any, rows: int, tokens: int, listeners: list[Any]) -> BatchStream:
    prompts = [[5 + row, 9, 11, 3] for row in range(rows)]
    return stream_batch_generate(
        pair[0],
        None,
        prompts,
        draft_model=draft[0],
        sampling=SamplingParams(max_tokens=tokens, ignore_eos=True),
        batching=BatchingConfig(batch_size=rows),
        listeners=listeners,
    )


def run(stream: BatchStream) -> float:
    """Seconds until the stream is read to its end."""
    begin = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - begin


def measure(pair: Any, draft: Any, rows: int, tokens: int, rounds: int) -> dict[str, float]:
    ratios, shares, dearest, steps_ms = [], [], [], []
    run(make_stream(pair, draft, rows, 10, []))
    for turn in range(rounds):
        seconds: dict[bool, float] = {}
        for logged in (True, False) if turn % 2 else (False, True):
            if not logged:
                seconds[False] = run(make_stream(pair, draft, rows, tokens, []))
                continue
            with tempfile.TemporaryDirectory() as folder, PerformanceLog(folder) as log:
                stream = make_stream(pair, draft, rows, tokens, [log])
                seconds[True] = run(stream)
        ratios.append(seconds[True] / seconds[False])
        # Timed in a run of its own, so that timing does not count above.
        with tempfile.TemporaryDirectory() as folder, PerformanceLog(folder) as log:
            stream = make_stream(pair, draft, rows, tokens, [log])
            timed = Timed(stream._engine._reporter)
            stream._engine._reporter = timed  # type: ignore[assignment]
            run(stream)
            steps = stream.stats.steps
            step = stream.stats.generation_time / steps
        steps_ms.append(1e3 * step)
        shares.append(sum(timed.calls) / steps / step)
        dearest.append(max(timed.calls))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "batch": rows,
        "step_ms": statistics.median(steps_ms),
        "in_step_share": statistics.median(shares),
        "in_step_us": 1e3 * statistics.median(steps_ms) * statistics.median(shares),
        "dearest_call_us": 1e6 * statistics.median(dearest),
        "with_without": middle,
        "with_without_low": low,
        "with_without_high": high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    pair, draft = load("demo"), load("demo-draft")
    rows = []
    print("batch  step ms  in the step: us  share   dearest us  with/without [quartiles]")
    for batch in options.batch:
        row = measure(pair, draft, batch, options.tokens, options.rounds)
        rows.append(row)
        print(
            f"{batch:5}  {row['step_ms']:7.2f}  {row['in_step_us']:15.1f}  "
            f"{row['in_step_share']:6.2%}  {row['dearest_call_us']:10.0f}  "
            f"{row['with_without']:.4f} [{row['with_without_low']:.4f}, "
            f"{row['with_without_high']:.4f}]",
            flush=True,
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
