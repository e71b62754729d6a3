"""Records through one stage: bounded look-ahead, one line out for each record in.

A record that fails gets an ``error`` field and the run goes on; only the end of the generator, or
of the disk, ends it. Results are written as soon as their turn comes. It owns no thread.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlx_spec import interrupts
from mlx_spec.errors import GeneratorClosed, InvalidRequest, MlxSpecError
from mlx_spec.pipeline.backend import Backend, Pending
from mlx_spec.pipeline.checkpoint import DROPPED
from mlx_spec.pipeline.failures import ERROR, FAILED, NUMBER
from mlx_spec.pipeline.live import Arrivals
from mlx_spec.pipeline.records import Record
from mlx_spec.pipeline.stage import Done, Responded, Stage
from mlx_spec.pipeline.verdicts import Verdicts
from mlx_spec.results import GenerationResult

_OURS = {NUMBER, DROPPED, FAILED, "_finish_reason", "_prompt_tokens", "_generation_tokens"}
# Between looks at all records under way, where any of them may end next; and at the first alone.
_POLL_ANY, _POLL_FIRST = 0.01, 0.25


class ResultWriter(Protocol):
    """Where results go: a ``Checkpoint``, or stdout."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one result."""


@dataclass
class Tally:
    """Records of one run: done before, written, with an error, dropped by the stage, cut at
    max_tokens; verdicts."""

    skipped: int = 0
    written: int = 0
    failed: int = 0
    dropped: int = 0
    cut: int = 0
    verdicts: Verdicts = field(default_factory=Verdicts)

    def merge(self, other: Tally) -> None:
        """Count those of another part of the run."""
        for name in ("skipped", "written", "failed", "dropped", "cut"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.verdicts.merge(other.verdicts)


@dataclass
class _StartedRecord:
    record: Record
    pending: Pending | None = None
    done: Done | None = None
    error: str | None = None
    refused: bool = True  # where there is an error: the record itself is wrong

    @property
    def ready(self) -> bool:
        return self.pending is None or self.pending.done


class StageRunner:
    """Runs one stage.

    Args:
        stage: what to ask and what to make of the answer.
        backend: answers.
        writer: takes results.
        tally: where to count.
        seed: every record's own seed comes from this and its number.
        look_ahead: most records under way at once.
        ordered: results in the order of the input, or as they come.
        watch: called now and then, for a progress bar.
    """

    def __init__(
        self,
        stage: Stage,
        backend: Backend,
        writer: ResultWriter,
        *,
        tally: Tally | None = None,
        seed: int = 0,
        look_ahead: int = 128,
        ordered: bool = True,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.tally = tally or Tally()
        self._stage, self._backend, self._writer = stage, backend, writer
        self._seed, self._look_ahead, self._ordered = seed, look_ahead, ordered
        self._watch = watch
        self._started: deque[_StartedRecord] = deque()

    def run(self, records: Arrivals) -> Tally:
        """Run every record; returns when all are written.

        Where ``records`` says None, nothing has come yet: what is under way gets a moment.
        """
        for record in records:
            if record is None:
                if self._started:  # else nothing changes, and nobody needs to hear of it
                    self._wait(_POLL_ANY)
                    self._write_ready()
                    self._watch()
                continue
            self._started.append(self._start(record))
            self._drain(self._look_ahead - 1)
        self._drain(0)
        return self.tally

    def _start(self, record: Record) -> _StartedRecord:
        if record.error is not None:
            return _StartedRecord(record, error=record.error)
        try:
            request = self._stage.prepare(record.fields)
            if isinstance(request, Done):
                return _StartedRecord(record, done=request)
            seed = record_seed(self._seed, record.number)
            return _StartedRecord(record, self._backend.submit(request, seed))
        except GeneratorClosed:
            raise
        except Exception as error:  # a stage or a chat template over foreign data
            return _StartedRecord(
                record, error=_reason(error), refused=isinstance(error, ValueError)
            )

    def _drain(self, most: int) -> None:
        """Write what is ready; wait until at most ``most`` records are under way."""
        while True:
            interrupts.check()
            self._write_ready()
            self._watch()
            if len(self._started) <= most:
                return
            self._wait(_POLL_FIRST if self._ordered else _POLL_ANY)

    def _wait(self, seconds: float) -> None:
        """Until the first record under way has its answer, or so long."""
        pending = self._started[0].pending if self._started else None
        if pending is not None:
            # Not yet; or the record's own error, which is written in its turn.
            with suppress(TimeoutError, InvalidRequest):
                pending.result(seconds)

    def _write_ready(self) -> None:
        if self._ordered:
            while self._started and self._started[0].ready:
                self._write(self._started.popleft())
            return
        ready = [one for one in self._started if one.ready]
        if ready:
            self._started = deque(one for one in self._started if not one.ready)
        for one in ready:
            self._write(one)

    def _write(self, one: _StartedRecord) -> None:
        answer: Any = None
        done, error, refused = one.done, one.error, one.refused
        if one.pending is not None:
            try:
                answer = one.pending.result()
            except InvalidRequest as wrong:
                error = _reason(wrong)
            else:
                done, error = self._complete(one.record, answer)
                refused = False
                self.tally.cut += getattr(answer, "finish_reason", None) == "length"
        line = self._line(clean(one.record.fields), done, error, refused)
        line[NUMBER] = one.record.number
        if isinstance(answer, GenerationResult):
            line["_finish_reason"] = answer.finish_reason
            line["_prompt_tokens"] = answer.prompt_tokens
            line["_generation_tokens"] = answer.generation_tokens
        if done is not None and done.dropped:
            line[DROPPED] = True
            self.tally.dropped += 1
        if done is not None and done.verdict is not None:
            self.tally.verdicts.add(done.verdict)
        self._writer.write(line)
        self.tally.written += 1
        self.tally.failed += error is not None

    def _line(
        self, fields: dict[str, Any], done: Done | None, error: str | None, refused: bool
    ) -> dict[str, Any]:
        """What the output says of a record."""
        if error is not None:
            return dict(self._stage.failed(fields, error, refused=refused))
        assert done is not None
        return {**({} if done.alone else fields), **done.fields}

    def _complete(self, record: Record, answer: Any) -> tuple[Done | None, str | None]:
        if isinstance(answer, (GenerationResult, Responded)) and answer.error is not None:
            return None, answer.error
        try:
            return self._stage.complete(record.fields, answer), None
        except Exception as error:  # what a stage cannot make sense of is the record's error
            return None, _reason(error)


def clean(fields: dict[str, Any]) -> dict[str, Any]:
    """A record without what an earlier run of ours added about itself."""
    if NUMBER not in fields:
        return fields
    # A table has the column of errors in every row, empty in most.
    ours = fields.get(FAILED) or (FAILED in fields and not fields.get(ERROR))
    gone = _OURS | {ERROR} if ours else _OURS
    return {name: value for name, value in fields.items() if name not in gone}


def record_seed(seed: int, number: int) -> int:
    """A record's own seed of 53 bits: the same in every run, whatever ran before it."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 11


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, MlxSpecError) else f"{type(error).__name__}: {text}"
