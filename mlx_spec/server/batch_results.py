"""The files that a batch makes: answers in one, what failed in the other, each record once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mlx_spec.pipeline.checkpoint import StoredRecords
from mlx_spec.pipeline.failures import ERROR, FAILED, NUMBER
from mlx_spec.pipeline.records import read_records
from mlx_spec.server.batch_job import BatchJob
from mlx_spec.server.batch_shelf import INPUT
from mlx_spec.server.files import MADE, FileShelf, NewFile
from mlx_spec.server.store import disk

_NAMES = ("output", "error")


def make_results(files: FileShelf, job: BatchJob, folder: Path, output: str) -> dict[str, Any]:
    """Make both files, those that hold anything; made again after a crash they are the same.

    Args:
        files: takes them.
        job: whose they are; its ``ending`` says why the rest was not run.
        folder: of the job.
        output: the file in it that holds what is done.

    Returns:
        What is to be noted of the job: ids and counts.
    """
    parts = [folder / f"{name}.tmp" for name in _NAMES]
    counts = [0, 0]
    with (
        disk(f"[store] results of {job.id}"),
        parts[0].open("wb") as good,
        parts[1].open("wb") as bad,
    ):
        for line in _results(folder / INPUT, folder / output, job):
            failed = bool(line.pop(FAILED, False))
            line.pop(NUMBER, None)
            (bad if failed else good).write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            counts[failed] += 1
    ids: list[str | None] = []
    for name, part, count, own in zip(_NAMES, parts, counts, job.result_ids, strict=True):
        ids.append(own if count else None)
        if count:
            new = NewFile(f"{job.id}_{name}.jsonl", MADE, job.result_seconds, own)
            files.keep(new, partial(os.replace, part))
        else:
            part.unlink()
    return {
        "output_file_id": ids[0],
        "error_file_id": ids[1],
        "completed": counts[0],
        "failed": counts[1],
        "total": job.total or sum(counts),
    }


def _results(source: Path, output: Path, job: BatchJob) -> Iterator[dict[str, Any]]:
    """A line for each record of the input, in order: what came of it, or why nothing did."""
    done = iter(StoredRecords(output) if output.exists() else ())
    following = next(done, None)
    for record in read_records(source, "jsonl"):
        if following is not None and following[NUMBER] == record.number:
            yield following
            following = next(done, None)
            continue
        name = record.fields.get("custom_id")
        digest = hashlib.blake2b(f"{job.id}\0{name}".encode("utf-8", "replace"), digest_size=12)
        words = f"the batch was {job.ending} before this request was run"
        yield {
            "id": f"batch_req_{digest.hexdigest()}",
            "custom_id": name,
            "response": None,
            ERROR: {"code": f"batch_{job.ending}", "message": words},
            FAILED: True,
        }
