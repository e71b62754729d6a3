"""Stages one after another, each with its own resumable output in the work folder.

A later stage sees what the one before kept; records that failed travel along, with their error,
untouched. The final output is made from the last stage's in one rename.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.events import Listener
from mlx_spec.pipeline import records
from mlx_spec.pipeline.backend import Models
from mlx_spec.pipeline.checkpoint import Checkpoint, StoredRecords
from mlx_spec.pipeline.config_file import PipelineConfig, StageConfig
from mlx_spec.pipeline.export import export
from mlx_spec.pipeline.failures import ERROR, FAILED, NUMBER
from mlx_spec.pipeline.process import Outcome, Watch, identity, process
from mlx_spec.pipeline.records import Record

Begin = Callable[[StageConfig, int | None], Watch]
"""Called at each stage's start, with the number of its records if known; gives its watcher."""


class Chain:
    """A checked chain; making it looks only, and refuses what :meth:`run` would have to refuse.

    Args:
        config: the stages, input and output.
        resume, overwrite: as for ``Checkpoint``.

    Raises:
        InvalidRequest: an input that cannot be read.
        OutputError: an output that exists, or is another run's.
    """

    def __init__(self, config: PipelineConfig, *, resume: bool, overwrite: bool) -> None:
        self._config = config
        self._format = records.format_of(config.input, None)
        self._out_format = records.format_of(config.output, None)
        if config.input.resolve() == config.output.resolve():
            raise InvalidRequest(f"[pipeline] {config.input} is both input and output")
        if config.output.exists() and not config.output.is_file():
            raise OutputError(f"[pipeline] {config.output} is not a regular file")
        digest = records.fingerprint(config.input)
        self._total = records.count(config.input, self._format)
        begun = self._path(config.stages[0]).exists()
        if config.output.exists() and not overwrite and not (resume and begun):
            hint = "" if begun else f" (nothing in {config.work} goes on with it)"
            raise OutputError(
                f"[pipeline] {config.output} exists{hint}; --resume goes on, "
                "--overwrite begins again"
            )
        self._outputs = []
        before: list[dict[str, Any]] = []
        for entry in config.stages:
            # Records are independent, so a stage's output follows from the first input and the
            # options of all stages up to it.
            source = {"file": digest, "stages_before": _digest(before)}
            mark = identity(entry.stage, entry.flags, source)
            before.append(mark | {"seed": entry.flags.seed})
            self._outputs.append(
                Checkpoint(
                    self._path(entry),
                    "jsonl",
                    mark,
                    entry.flags.seed,
                    resume=resume,
                    overwrite=overwrite,
                )
            )

    def run(
        self,
        models: Models,
        begin: Begin,
        *,
        limit: int | None = None,
        listeners: Seq[Listener] = (),
    ) -> list[Outcome]:
        """Run every stage; ends early where one was interrupted."""
        outcomes: list[Outcome] = []
        source: Iterator[Record] = records.read_records(self._config.input, self._format)
        total: int | None = self._total if limit is None else min(limit, self._total)
        for entry, output in zip(self._config.stages, self._outputs, strict=True):
            watch = begin(entry, total)
            outcomes.append(
                process(
                    entry.stage,
                    entry.flags,
                    source,
                    output,
                    models,
                    limit=limit if not outcomes else None,
                    watch=watch,
                    listeners=listeners,
                )
            )
            if outcomes[-1].interrupted:
                return outcomes
            source = _kept(output.work)
            total = len(output)
        self._export(self._outputs[-1].work)
        return outcomes

    def _export(self, last: Path) -> None:
        """The last stage's output, without what was dropped, as the chain's."""
        output = self._config.output
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            export(StoredRecords(last, dropped=False), output, self._out_format)
        except (OSError, OutputError) as error:
            raise OutputError(
                f"[pipeline] {error}; all records are in {last}, --resume tries again"
            ) from error

    def _path(self, entry: StageConfig) -> Path:
        return self._config.work / f"{entry.name}.jsonl"


def _kept(path: Path) -> Iterator[Record]:
    """A stage's output as the next one's input: the same numbers, without the dropped."""
    for fields in StoredRecords(path, dropped=False):
        error = fields.get(ERROR) if fields.get(FAILED) else None
        yield Record(fields[NUMBER], fields, error)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
