"""Stages one after another, each with its own resumable output in the work folder.

A later stage sees what the one before kept; records that failed travel along, with their error,
untouched. The final output is made from the last stage's in one rename.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.pipeline import records
from mlx_spec.pipeline.checkpoint import Checkpoint, StoredRecords, kept_seed
from mlx_spec.pipeline.config_file import PipelineConfig, StageConfig
from mlx_spec.pipeline.export import export
from mlx_spec.pipeline.failures import ERROR, FAILED, NUMBER
from mlx_spec.pipeline.process import Outcome, Watch, identity
from mlx_spec.pipeline.records import Reader, Record

Begin = Callable[[int, int | None], Watch]
"""Called at each stage's start, with its place, from 0, and the number of its records if known;
gives its watcher."""
Work: TypeAlias = Callable[[StageConfig, Reader, Checkpoint, int | None, Watch], Outcome]
"""Runs a stage over records, as far as they are not done; the number is that of the first ones that
are meant, None for all."""


class Chain:
    """A checked chain; making it looks only, and refuses what :meth:`run` would have to refuse.

    Args:
        config: the stages, input and output.
        resume, overwrite: as for ``Checkpoint``.
        part: which stages run; None for all. What those before them gave is taken from the work
            folder, and what they gave before themselves is made anew, unless ``resume``.

    Raises:
        InvalidRequest: an input that cannot be read.
        OutputError: an output that exists, or is another run's.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        resume: bool,
        overwrite: bool,
        part: range | None = None,
    ) -> None:
        self._config = config
        self._part = range(len(config.stages)) if part is None else part
        self._format = records.format_of(config.input, None)
        self._out_format = records.format_of(config.output, None)
        if config.input.resolve() == config.output.resolve():
            raise InvalidRequest(f"[pipeline] {config.input} is both input and output")
        if config.output.exists() and not config.output.is_file():
            raise OutputError(f"[pipeline] {config.output} is not a regular file")
        digest = records.fingerprint(config.input)
        self._total = records.count(config.input, self._format)
        begun = self._path(config.stages[0]).exists()
        if part is None and config.output.exists() and not overwrite and not (resume and begun):
            hint = "" if begun else f" (nothing in {config.work} goes on with it)"
            raise OutputError(
                f"[pipeline] {config.output} exists{hint}; --resume goes on, "
                "--overwrite begins again"
            )
        self._outputs = []
        before: list[dict[str, Any]] = []
        for number, entry in enumerate(config.stages[: self._part.stop]):
            # Records are independent, so a stage's output follows from the first input and the
            # options of all stages up to it.
            source = {"file": digest, "stages_before": _digest(before)}
            mark = identity(entry.stage, entry.flags, source)
            before.append(mark | {"seed": entry.flags.seed})
            self._outputs.append(
                self._open(number, entry, mark, resume, overwrite or part is not None)
            )

    def _open(
        self, number: int, entry: StageConfig, mark: dict[str, Any], resume: bool, anew: bool
    ) -> Checkpoint:
        """A stage's output; of one that does not run, what is there.

        Raises:
            OutputError: nothing is, or it is another run's.
        """
        path, seed = self._path(entry), entry.flags.seed
        if number not in self._part:
            if not path.exists():
                raise OutputError(
                    f"[pipeline] {entry.name} has not run yet: {path} is not there; "
                    f"--from {entry.name} runs it"
                )
            return Checkpoint(path, "jsonl", mark, seed, resume=True)
        # With its seed a stage that is run again says the same, and later ones still fit.
        seed = (
            kept_seed(path) if seed is None and len(self._part) < len(self._config.stages) else seed
        )
        return Checkpoint(path, "jsonl", mark, seed, resume=resume, overwrite=anew and not resume)

    def run(self, work: Work, begin: Begin, *, limit: int | None = None) -> list[Outcome]:
        """Run the stages, each by ``work``; ends early where one was interrupted.

        Raises:
            OutputError: a stage that does not run has not done all its records.
        """
        outcomes: list[Outcome] = []
        source: Reader = partial(records.read_records, self._config.input.absolute(), self._format)
        total = self._total if limit is None else min(limit, self._total)
        for number, output in enumerate(self._outputs):
            entry = self._config.stages[number]
            if number not in self._part:
                _check_done(entry, output, total)
            else:
                first = limit if number == 0 else None
                outcomes.append(work(entry, source, output, first, begin(number, total)))
                if outcomes[-1].interrupted:
                    return outcomes
            source = partial(_kept, output.work.absolute())
            total = sum(1 for _ in source())
        if self._part.stop == len(self._config.stages):
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


def _check_done(entry: StageConfig, output: Checkpoint, total: int) -> None:
    """Refuse to go on behind a stage that has not done its records."""
    if len(output) < total:
        raise OutputError(
            f"[pipeline] {entry.name} has {len(output)} of {total} records done; "
            f"--from {entry.name} --resume goes on with it"
        )


def _kept(path: Path) -> Iterator[Record]:
    """A stage's output as the next one's input: the same numbers, without the dropped."""
    for fields in StoredRecords(path, dropped=False):
        error = fields.get(ERROR) if fields.get(FAILED) else None
        yield Record(fields[NUMBER], fields, error)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
