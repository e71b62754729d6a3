"""One stage from its records to its output: what is done is skipped, the rest is run and written.

``mlx-spec batch`` calls it once, a chain once a stage.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from mlx_spec import interrupts
from mlx_spec.events import EventFeed, Listener, StageDone
from mlx_spec.pipeline.backend import Models, open_backend
from mlx_spec.pipeline.checkpoint import Checkpoint
from mlx_spec.pipeline.failures import Failures
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.live import Arrivals
from mlx_spec.pipeline.records import Record
from mlx_spec.pipeline.stage import Stage
from mlx_spec.pipeline.stage_runner import StageRunner, Tally
from mlx_spec.pipeline.stdout import StdoutOutput
from mlx_spec.results import GenerationStats

Output: TypeAlias = Checkpoint | StdoutOutput
Watch: TypeAlias = Callable[[Tally, Callable[[], GenerationStats]], None]
"""Called now and then with the counts so far and a way to ask for the model's figures."""


@dataclass
class Outcome:
    """What came of a stage.

    Attributes:
        tally: counts of this run.
        failures: records with an error in the whole output, earlier runs' included.
        stats: the model's figures.
        seconds: from the first record to the last, models loaded.
        interrupted: Ctrl-C ended it; what is done stays.
    """

    tally: Tally = field(default_factory=Tally)
    failures: Failures = field(default_factory=Failures)
    stats: GenerationStats = field(default_factory=GenerationStats)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def failed(self) -> int:
        """How many of them."""
        return self.failures.count

    @property
    def warning(self) -> str | None:
        """A word where nearly all records got the same verdict."""
        return self.tally.verdicts.warning()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While records are under way: takes their time, and Ctrl-C ends them alone."""
        started = time.perf_counter()
        try:
            yield
        except KeyboardInterrupt:
            interrupts.answered()
            self.interrupted = True
        self.seconds = time.perf_counter() - started


@contextmanager
def outcome_of(output: Output, limit: int | None) -> Iterator[Outcome]:
    """What comes of a stage, whose output is finished behind the block, and closed in any case.

    Args:
        output: of the stage.
        limit: only the first records of the input are to be done; None for all.
    """
    outcome = Outcome()
    try:
        yield outcome
        if not outcome.interrupted:
            output.finish(complete=limit is None)
    finally:
        output.close()
    outcome.failures = output.failures


def identity(stage: Stage, flags: Flags, source: Any) -> dict[str, Any]:
    """What must be equal for a resume: the input, the stage's options, those of the text."""
    return {"input": source, "stage": stage.kind, **asdict(stage), **flags.identity()}


def process(
    stage: Stage,
    flags: Flags,
    records: Arrivals,
    output: Output,
    models: Models,
    *,
    limit: int | None = None,
    watch: Watch = lambda tally, stats: None,
    listeners: Seq[Listener] = (),
) -> Outcome:
    """Run what is not done yet; models are loaded only if there is any.

    ``records`` may say None where the next one has not come yet (``live``). Listeners hear what
    the engine does, and at the end of the stage.

    Raises:
        MlxSpecError: the input, a model or the output cannot be used.
    """
    with outcome_of(output, limit) as outcome:
        left = iter(_remaining(records, output, outcome.tally, limit))
        first = next((record for record in left if record is not None), None)
        if first is None:
            output.begin()
            return outcome
        with open_backend(stage, flags, models, listeners) as backend:
            # Only now, so that a model that is not there costs nobody an old output.
            output.begin()
            runner = StageRunner(
                stage,
                backend,
                output,
                tally=outcome.tally,
                seed=output.seed,
                look_ahead=flags.look_ahead,
                ordered=not flags.unordered,
                watch=lambda: watch(outcome.tally, backend.stats),
            )
            with outcome.running():
                runner.run(itertools.chain([first], left))
            outcome.stats = backend.stats()
        tally, now = outcome.tally, time.perf_counter()
        done = StageDone(now, stage.kind, tally.written, outcome.seconds, tally.failed)
        EventFeed(listeners).publish(done)
    return outcome


def _remaining(
    records: Arrivals, output: Output, tally: Tally, limit: int | None
) -> Iterator[Record | None]:
    """Of the first ``limit`` records those that are not done."""
    seen = 0
    for record in records:
        interrupts.check()
        if record is None:
            yield None
            continue
        if record.number in output:
            tally.skipped += 1
        else:
            yield record
        seen += 1
        if seen == limit:
            return
