"""Records in OpenAI's batch format, recognised by the first of them.

``mlx-spec batch`` answers these in the same format. Who says where the prompt is
(``--prompt-field`` and the like) means records of another kind, whatever they look like.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_spec.cli.notes import note
from mlx_spec.errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_spec.cli.stage_run import StageRun
    from mlx_spec.pipeline.records import Record


def recognised(run: StageRun, found: Iterator[Record]) -> tuple[StageRun, Iterator[Record]]:
    """The run with the stage that its records need, and the records.

    Raises:
        InvalidRequest: they are of that format, and what is needed for it is not there, or the
            output is no JSON lines.
    """
    from mlx_spec.pipeline.stages.generate import GenerateText

    stage = run.stage
    if not isinstance(stage, GenerateText) or stage != GenerateText():
        return run, found
    first = next(found, None)
    if first is None:
        return run, found
    found = itertools.chain([first], found)
    named = isinstance(first.fields.get("custom_id"), str)
    if not named or not isinstance(first.fields.get("body"), dict):
        return run, found
    if {"prompt", "text", "messages"} & first.fields.keys():
        return run, found
    try:
        from mlx_spec.server.api_records import ApiRecords
    except ImportError as error:
        raise InvalidRequest(
            "[batch] the records are requests of OpenAI's API (custom_id, body), which need "
            "pip install 'mlx-spec[server]'"
        ) from error
    if run.formats[1] != "jsonl":
        raise InvalidRequest(
            f"[batch] the records are requests of OpenAI's API, whose answers are JSON lines; "
            f"{run.out} is {run.formats[1]}"
        )
    if not run.files.quiet:
        note("the records are requests of OpenAI's API (custom_id, body), and so are the answers")
    return replace(run, stage=ApiRecords()), found
