"""A machine for kernels that none has: what each operation does there is said by the test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from metal_kernels.trials.cases import error_at
from metal_kernels.trials.judge import Followed, KernelTimes, KernelVerdict, judge
from metal_kernels.trials.site import KernelPoint, KernelSite

Behaviour = str | Callable[[KernelPoint], str]


class PretendedMachine:
    """What each operation does: ``quick``, ``slow``, ``wrong``, ``nan``, ``raises`` or ``drags``.

    Args:
        behaviour: by operation, the same at all points or by point; ``quick`` for others.
        step: seconds that a step takes on its clock.
    """

    def __init__(self, behaviour: dict[str, Behaviour] | None = None, step: float = 0.0) -> None:
        self.now, self.calls = 0.0, Counter[str]()
        self._behaviour, self._step = behaviour or {}, step

    def clock(self) -> float:
        """Its own time."""
        return self.now

    def error(self, site: KernelSite, point: KernelPoint) -> float:
        """In units of the tolerance."""
        self.calls[site.operation] += 1
        does = self._does(site, point)
        self.now += 3.0 if does == "drags" else self._step
        if does == "raises":
            raise RuntimeError("[metal::Device] Unable to build metal library\nerror: no bfloat")
        return {"wrong": 7.0, "nan": float("nan")}.get(does, 0.3)

    def times(self, site: KernelSite, point: KernelPoint) -> KernelTimes:
        """Ours against theirs."""
        ratio = 1.5 if self._does(site, point) == "slow" else 0.5
        return KernelTimes(1e-4 * ratio, 1e-4, ratio)

    def _does(self, site: KernelSite, point: KernelPoint) -> str:
        does = self._behaviour.get(site.operation, "quick")
        return does if isinstance(does, str) else does(point)

    def attempt(
        self, known: tuple[KernelVerdict, ...], seconds: float
    ) -> tuple[KernelVerdict, ...]:
        """As ``kernel_trial.try_kernels``, in this process."""
        return tried_here(known, seconds, self)


class SmallMachine(PretendedMachine):
    """Real kernels, as the simulator runs them, at points that it can bear, each of those once;
    times are pretended."""

    def __init__(self, behaviour: dict[str, Behaviour] | None = None) -> None:
        super().__init__(behaviour)
        self._errors = cache(error_at)

    def error(self, site: KernelSite, point: KernelPoint) -> float:
        """Of the kernel itself."""
        super().error(site, point)
        small = replace(point, rows=min(point.rows, 4), tokens=min(point.tokens, 3), keys=40)
        return self._errors(site, small)


def tried_here(
    known: tuple[KernelVerdict, ...], seconds: float, machine: PretendedMachine
) -> tuple[KernelVerdict, ...]:
    """Verdicts after so many seconds of the machine's own time."""
    followed = Followed(known)
    for event in judge(known, machine, seconds, machine.clock):
        followed.take(event, machine.now)
    followed.stop(machine.now)
    return followed.verdicts
