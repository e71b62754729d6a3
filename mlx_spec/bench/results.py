"""What was measured: cells of arms, each with its figures, and what can be said of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_spec.bench.arms import AGAIN
from mlx_spec.bench.bandwidth import Bandwidth
from mlx_spec.bench.comparing import TextDifference
from mlx_spec.bench.findings import Recommendation, noise_of
from mlx_spec.bench.plan import Plan
from mlx_spec.bench.rounds import Series

SPEED = "tok/s"


@dataclass(frozen=True)
class CellKey:
    """Which cell.

    Attributes:
        weights: how they were quantized; None for as they are.
        batch: rows.
        length: tokens of the prompts as asked for; None where they are as they are.
    """

    weights: str | None
    batch: int
    length: int | None


@dataclass(frozen=True)
class ArmResult:
    """One arm in one cell.

    Attributes:
        name: as tables have it.
        series: its figures (``ArmRun.figures``), round by round.
        ratios: its speed over plain decoding's in each round.
        exact: whether it promises plain decoding's texts: ours do.
        compared: whether its texts can be those of plain decoding at all (mlx-lm's samples cannot).
        differences: where its texts leave plain decoding's.
        by_kind: speed over plain decoding's by kind of prompt, where one runs at a time.
    """

    name: str
    series: Series
    ratios: tuple[float, ...]
    exact: bool = True
    compared: bool = True
    differences: tuple[TextDifference, ...] = ()
    by_kind: Mapping[str, float] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether all texts are plain decoding's, near ties apart."""
        return all(one.near_tie for one in self.differences)

    @property
    def ratio(self) -> float:
        """Median over plain decoding."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class CellResult:
    """One cell, all of whose arms ran in at least one round.

    Attributes:
        key: which.
        prompt_tokens: of a prompt, the mean of what they are.
        prompts: how many.
        arms: what ran, plain decoding first.
        share: of the memory's speed that plain decoding reaches.
    """

    key: CellKey
    prompt_tokens: float
    prompts: int
    arms: tuple[ArmResult, ...]
    share: float

    def arm(self, name: str) -> ArmResult | None:
        """The arm of that name, if it ran here."""
        return next((one for one in self.arms if one.name == name), None)


@dataclass(frozen=True)
class BenchResult:
    """All of a run.

    Attributes:
        model: its name.
        model_bytes: of its weights, by how they were quantized.
        bandwidth: of this machine's memory.
        plan: what was to be measured.
        cells: what was.
        left_out: arms that could not run, and why.
        recommended: what to use, and what to type for it.
        interrupted: whether Ctrl-C ended it.
    """

    model: str
    model_bytes: Mapping[str | None, int]
    bandwidth: Bandwidth
    plan: Plan
    cells: tuple[CellResult, ...]
    left_out: Mapping[str, str]
    recommended: tuple[tuple[Recommendation, str], ...] = ()
    interrupted: bool = False

    @property
    def noise(self) -> float:
        """Between plain decoding and the same again."""
        return noise_of(
            [one for cell in self.cells if (arm := cell.arm(AGAIN)) for one in arm.ratios]
        )

    @property
    def equal(self) -> bool:
        """Whether each of our arms said what plain decoding says, near ties apart."""
        return all(arm.same for cell in self.cells for arm in cell.arms if arm.exact)
