"""``collect``: one stage over records in memory, for notebooks and scripts.

    rows = collect(Classify(labels=("code", "soup")), [{"text": "def read_"}], model=name)

Nothing is written to disk, so nothing can be resumed: for that there is ``process``.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.backend import Models, open_backend
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.process import Watch
from mlx_spec.pipeline.progress import Progress
from mlx_spec.pipeline.records import Record
from mlx_spec.pipeline.stage import Stage
from mlx_spec.pipeline.stage_runner import StageRunner, Tally


@dataclass
class _RowWriter:
    """Takes results into a list."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self, record: dict[str, Any]) -> None:
        self.rows.append(record)


def collect(
    stage: Stage,
    records: Iterable[Mapping[str, Any]],
    flags: Flags | None = None,
    *,
    models: Models | None = None,
    progress: bool = False,
    watch: Watch | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Run a stage and return its results, in order; a record that fails carries ``error``.

    Args:
        stage: what to ask of each record.
        records: their fields.
        flags: models, sampling and batching, as for ``mlx-spec batch``.
        models: keeps what is loaded for the next call.
        progress: show how far it is: a line in a notebook, a bar on a terminal.
        watch: told how far it is.
        options: fields of ``Flags``, in the place of those of ``flags``: ``model="..."``,
            ``batch_size=8``.

    Warns:
        UserWarning: nearly all records got the same verdict, with the numbers.

    Raises:
        InvalidRequest: an option that does not exist, or a value outside its range.
        MlxSpecError: a model that cannot be used.
    """
    flags = _with_options(flags or Flags(), options)
    writer, tally = _RowWriter(), Tally()
    total = len(records) if isinstance(records, Sized) else None
    numbered = (Record(number, dict(record)) for number, record in enumerate(records, start=1))
    with ExitStack() as stack:
        if watch is None:
            watch = stack.enter_context(Progress(stage.kind, total, quiet=not progress))
        backend = stack.enter_context(open_backend(stage, flags, models or Models()))
        runner = StageRunner(
            stage,
            backend,
            writer,
            tally=tally,
            seed=flags.seed or 0,
            look_ahead=flags.look_ahead,
            ordered=not flags.unordered,
            watch=partial(watch, tally, backend.stats),
        )
        runner.run(numbered)
    if (warning := tally.verdicts.warning()) is not None:
        warnings.warn(f"{stage.kind}: {warning}", stacklevel=2)
    return writer.rows


def _with_options(flags: Flags, options: Mapping[str, Any]) -> Flags:
    known = [one.name for one in fields(Flags)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise InvalidRequest(f"[collect] unknown option {name!r}: {hint}")
    return replace(flags, **options)
