"""``collect``: one stage over records in memory, for notebooks and scripts.

    rows = collect(Classify(labels=("code", "soup")), [{"text": "def read_"}])

Nothing is written to disk, so nothing can be resumed: for that there is ``process``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.flags import Flags
from mlx_spec.pipeline.backend import Models, open_backend
from mlx_spec.pipeline.process import Watch
from mlx_spec.pipeline.records import Record
from mlx_spec.pipeline.runner import StageRunner, Tally
from mlx_spec.pipeline.stage import Stage


@dataclass
class _Rows:
    """Takes results into a list."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self, record: dict[str, Any]) -> None:
        self.rows.append(record)


def collect(
    stage: Stage,
    records: Iterable[Mapping[str, Any]],
    flags: Flags = Flags(),  # noqa: B008 (frozen)
    *,
    models: Models | None = None,
    watch: Watch = lambda tally, stats: None,
) -> list[dict[str, Any]]:
    """Run a stage and return its results, in order; a record that fails carries ``error``.

    Args:
        stage: what to ask of each record.
        records: their fields.
        flags: models, sampling and batching, as for ``mlx-spec batch``.
        models: keeps what is loaded for the next call.
        watch: told how far it is, e.g. ``cli.progress.Progress``.

    Warns:
        UserWarning: nearly all records got the same verdict, with the numbers.

    Raises:
        MlxSpecError: a model that cannot be used.
    """
    sink, tally = _Rows(), Tally()
    numbered = (Record(number, dict(fields)) for number, fields in enumerate(records, start=1))
    with open_backend(stage, flags, models or Models()) as backend:
        runner = StageRunner(
            stage,
            backend,
            sink,
            tally=tally,
            seed=flags.seed or 0,
            look_ahead=flags.look_ahead,
            ordered=not flags.unordered,
            watch=lambda: watch(tally, backend.stats),
        )
        runner.run(numbered)
    if (warning := tally.verdicts.warning()) is not None:
        warnings.warn(f"{stage.kind}: {warning}", stacklevel=2)
    return sink.rows
