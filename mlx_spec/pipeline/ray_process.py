"""A stage over several machines, through Ray Data: the output is the one that one machine writes.

    records --- chunks ---> worker, worker, ... --- answers, in order ---> Checkpoint
    read here               one a machine             written here
      ^------------------ RunPace: so many chunks ahead, not more -----------------'

Only this process writes, and what is done is what its file says, as ever: a worker, a machine or
all of Ray may go at any time. Ray Data starts workers, hands them chunks, and gives those of a
worker that is gone to another one. What it holds back it counts in bytes, of which records have
few: that no more than a few chunks are read ahead is seen to by ``RunPace``.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_spec import interrupts
from mlx_spec.errors import GeneratorClosed, MlxSpecError
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.options import options_of
from mlx_spec.pipeline.process import Outcome, Output, Watch, outcome_of
from mlx_spec.pipeline.ray_cluster import Machines, check_address, import_ray, joined
from mlx_spec.pipeline.records import Reader
from mlx_spec.pipeline.stage import Stage
from mlx_spec.results import GenerationStats

if TYPE_CHECKING:
    from mlx_spec.pipeline.ray_source import ChunkSource
    from mlx_spec.pipeline.ray_worker import ChunkAnswer, RemoteWork

_AHEAD = 4  # chunks that are read and not written, for each that a worker has under way


@dataclass(frozen=True)
class RayOptions:
    """Where a stage runs.

    Attributes:
        address: ``auto``, ``local`` or HOST:PORT.
        workers: generators in all; None: one a machine.
        limit: only the first records of the input; None for all.
    """

    address: str
    workers: int | None = None
    limit: int | None = None


def process_over_ray(
    stage: Stage,
    flags: Flags,
    read: Reader,
    output: Output,
    options: RayOptions,
    watch: Watch = lambda tally, stats: None,
) -> Outcome:
    """Run what is not done yet; Ray is started only if there is any.

    ``read`` gives the records, as often as it is asked, in any process of this machine.

    Raises:
        MlxSpecError: the cluster, the input, a model or the output cannot be used; what is done
            stays.
    """
    check_address(options.address)
    import_ray()
    from mlx_spec.pipeline.ray_source import ChunkSource
    from mlx_spec.pipeline.ray_worker import RemoteWork

    work = RemoteWork(stage, _located(flags), output.seed)
    source = ChunkSource(read, output.done, options.limit, work.chunk)
    with outcome_of(output, options.limit) as outcome:
        outcome.tally.skipped = sum(map(bool, output.done))
        if output.complete or next(source.left(), None) is None:
            output.begin()
        else:
            with joined(options.address, options.workers) as machines:
                _run(work, source, machines, output, outcome, watch)
    return outcome


def _run(
    work: RemoteWork,
    source: ChunkSource,
    machines: Machines,
    output: Output,
    outcome: Outcome,
    watch: Watch,
) -> None:
    begun = False
    stats: dict[str, GenerationStats] = {}
    tally = outcome.tally
    watch(tally, GenerationStats)  # its clock begins
    with outcome.running():
        for answer in _answers(work, source, machines):
            if not begun:
                # Only now, so that a model that is not there costs nobody an old output.
                output.begin()
                begun = True
            for line in answer.lines:
                output.write(json.loads(line))
            tally.merge(answer.tally)
            # Answers come in the order of records, and not in that in which they were made.
            known = stats.get(answer.worker, answer.stats)
            stats[answer.worker] = max(known, answer.stats, key=lambda one: one.prompt_tokens)
            watch(tally, lambda: together(stats))
            interrupts.check()
    outcome.stats = together(stats)


def _answers(work: RemoteWork, source: ChunkSource, machines: Machines) -> Iterator[ChunkAnswer]:
    """What workers make of the chunks, in order unless the run is unordered.

    Raises:
        MlxSpecError: what a worker raised, or that workers are lost again and again.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    from mlx_spec.pipeline.ray_pace import begin_pace
    from mlx_spec.pipeline.ray_source import RecordSource
    from mlx_spec.pipeline.ray_worker import ANSWER, RayWorker

    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # A chunk is a block, and a block a task: they are joined to no larger ones.
    context.target_max_block_size = context.target_min_block_size = 1
    context.execution_options.preserve_order = not work.flags.unordered
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    pace = begin_pace(_AHEAD * work.calls * machines.workers)
    records = RecordSource(replace(source, pace=pace))
    rows = ray.data.read_datasource(records, override_num_blocks=1, num_cpus=0)
    rows = rows.map_batches(
        RayWorker,
        fn_constructor_args=(work, pace),
        compute=ActorPoolStrategy(
            size=machines.workers,
            max_concurrent_calls_per_actor=work.calls,
            enable_true_multi_threading=work.calls > 1,
        ),
        num_cpus=1,
    )
    try:
        for batch in rows.iter_batches(batch_size=None, prefetch_batches=1):
            for one in batch[ANSWER]:
                yield pickle.loads(one)
                pace.done.remote()
    except Exception as error:
        raise _ours(error) from error


def _ours(error: BaseException) -> MlxSpecError:
    """What one of ours said at the bottom of Ray's errors, or theirs in a line."""
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or one in seen:
            continue
        if isinstance(one, MlxSpecError) and type(one).__module__ == MlxSpecError.__module__:
            return one
        seen.append(one)
        left += [one.__context__, one.__cause__, getattr(one, "cause", None)]
    text = " ".join(str(error).split())[-300:]
    return GeneratorClosed(f"[ray] the run ended: {text}; what is done stays, --resume goes on")


def _located(flags: Flags) -> Flags:
    """The options with whole paths: workers have folders of their own."""
    here = Path.cwd()
    given: dict[str, Any] = {
        name: one.located(value, here)
        for name, one in options_of(Flags).items()
        if isinstance(value := getattr(flags, name), str)
    }
    return replace(flags, **given)


def together(stats: dict[str, GenerationStats]) -> GenerationStats:
    """Figures of workers that run side by side: counts add up, times are the longest one's."""
    every = list(stats.values())
    if not every:
        return GenerationStats()
    longest = {
        name: max(getattr(one, name) for one in every)
        for name in ("prompt_time", "generation_time", "peak_memory")
    }
    summed = {
        item.name: sum(getattr(one, item.name) for one in every)
        for item in fields(GenerationStats)
        if item.name not in longest and isinstance(getattr(every[0], item.name), int)
    }
    lengths: dict[int, int] = {}
    for one in every:
        for length, steps in one.draft_lengths.items():
            lengths[length] = lengths.get(length, 0) + steps
    return replace(
        every[0],
        **longest,
        **summed,
        draft_lengths=lengths,
        drafters={},
        plain_tps=None,
        speculative_tps=None,
        measured="",
    )
