"""From runs to results: ratios within rounds, texts compared, flags to recommend."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from mlx_spec.bench.arms import AGAIN, PLAIN, ArmRun, command_line
from mlx_spec.bench.bandwidth import Bandwidth
from mlx_spec.bench.comparing import TextDifference, differences, look_into
from mlx_spec.bench.contest import Contest
from mlx_spec.bench.findings import Measured, Recommendation, recommend
from mlx_spec.bench.results import SPEED, ArmResult, CellKey, CellResult
from mlx_spec.bench.rounds import Series, ratios
from mlx_spec.pipeline.flags import Flags


@dataclass
class CellRuns:
    """Runs of one cell, of whole rounds only.

    Attributes:
        key: which cell.
        prompts: token ids.
        kinds: of the prompts.
        runs: by arm, round by round.
    """

    key: CellKey
    prompts: list[list[int]] = field(repr=False)
    kinds: list[str]
    runs: dict[str, list[ArmRun]] = field(default_factory=dict)

    def add(self, round_: Mapping[str, ArmRun]) -> None:
        """A whole round."""
        for name, run in round_.items():
            self.runs.setdefault(name, []).append(run)


def cell_result(cell: CellRuns, contest: Contest, bandwidth: Bandwidth) -> CellResult:
    """Figures and comparisons of a cell that has at least one round."""
    plain = cell.runs[PLAIN]
    base = Series([run.figures for run in plain])
    exact = {runner.name: runner.exact for runner in contest.runners}
    greedy = not contest.flags[PLAIN].sampling.temperature
    arms = []
    for name, runs in cell.runs.items():
        series = Series([run.figures for run in runs])
        compared = exact[name] or greedy
        found = _compared(runs, plain[0], cell, contest, exact[name]) if compared else []
        arms.append(
            ArmResult(
                name,
                series,
                tuple(ratios(series, base, SPEED)),
                exact[name],
                compared,
                tuple(found),
                _by_kind(runs, plain, cell.kinds),
            )
        )
    mean = sum(map(len, cell.prompts)) / len(cell.prompts)
    return CellResult(
        cell.key, mean, len(cell.prompts), tuple(arms), _share(base, mean, contest, bandwidth)
    )


def _compared(
    runs: Seq[ArmRun], plain: ArmRun, cell: CellRuns, contest: Contest, exact: bool
) -> list[TextDifference]:
    """Where any of the runs leaves plain decoding's first, each prompt once."""
    found: dict[int, TextDifference] = {}
    greedy = not contest.flags[PLAIN].sampling.temperature
    for run in runs:
        new = [one for one in differences(run, plain, exact) if one.prompt not in found]
        if greedy:
            new = look_into(new, run, plain, cell.prompts, contest.target)
        found |= {one.prompt: one for one in new}
    return [found[prompt] for prompt in sorted(found)]


def _by_kind(runs: Seq[ArmRun], plain: Seq[ArmRun], kinds: Seq[str]) -> dict[str, float]:
    """Speed over plain decoding's by kind, the median over prompts and rounds."""
    found: dict[str, list[float]] = {}
    for run, base in zip(runs, plain, strict=True):
        for kind, ours, theirs in zip(kinds, run.speeds, base.speeds, strict=False):
            if ours and theirs:
                found.setdefault(kind, []).append(ours / theirs)
    return {kind: statistics.median(each) for kind, each in found.items()}


def _share(plain: Series, prompt: float, contest: Contest, bandwidth: Bandwidth) -> float:
    """Of the memory's speed, what plain decoding reaches."""
    tokens, steps = plain.median("tokens"), plain.median("steps")
    rows = tokens / steps
    each = tokens / max(1, plain.median("texts"))
    needed = contest.reading.step(round(rows), prompt + each / 2)
    return needed / plain.median("step seconds") / bandwidth.best


def recommended(
    cells: Seq[CellResult], contests: Seq[Contest], noise: float
) -> list[tuple[Recommendation, str]]:
    """What to use, and what to type for it.

    Args:
        cells: of all contests.
        contests: by how weights were quantized.
        noise: gains up to it are none.
    """
    choices = {contest.weights: contest.choices for contest in contests}
    flags: dict[tuple[str | None, str], Flags] = {
        (contest.weights, name): own for contest in contests for name, own in contest.flags.items()
    }
    known = [
        Measured(
            cell.key.weights,
            cell.key.batch,
            cell.prompt_tokens,
            choices[cell.key.weights][arm.name],
            arm.series.median(SPEED),
            arm.ratios,
            arm.same,
        )
        for cell in cells
        for arm in cell.arms
        if arm.name in choices[cell.key.weights] and arm.name != AGAIN
    ]
    found = []
    for one in recommend(known, noise):
        own = flags[one.weights, one.choice.name]
        if (
            one.choice.name == PLAIN
            and not (bare := replace(own, enable_speculative=None)).drafting
        ):
            own = bare  # nothing drafts unless told so
        if one.purpose == "many":
            own = replace(own, batch_size=one.batch)
        found.append((one, command_line(own, one.purpose)))
    return found
