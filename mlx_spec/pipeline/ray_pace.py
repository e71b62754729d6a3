"""``RunPace``: how far a run over Ray is, and how often each of its chunks was begun.

An actor on the machine of the command, which takes all of the run with it anyway.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from mlx_spec.pipeline.ray_cluster import import_ray


class RunPace:
    """Counts of one run.

    Args:
        ahead: chunks that may be read and not written.
    """

    def __init__(self, ahead: int) -> None:
        self._ahead, self._done = ahead, 0
        self._moved = asyncio.Condition()
        self._begun: Counter[int] = Counter()

    async def wait(self, number: int) -> None:
        """Until the chunk of this number, from 0, may be read."""
        async with self._moved:
            await self._moved.wait_for(lambda: number < self._done + self._ahead)

    async def done(self) -> None:
        """One more chunk was written."""
        async with self._moved:
            self._done += 1
            self._moved.notify_all()

    async def begin(self, record: int) -> int:
        """The chunk that begins with this record is begun; how often it was by now."""
        self._begun[record] += 1
        return self._begun[record]


def begin_pace(ahead: int) -> Any:
    """The actor of a run, which outlives workers."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = import_ray()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(RunPace).remote(ahead)
