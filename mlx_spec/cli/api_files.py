"""Records in OpenAI's batch format, recognised by the first of them.

``mlx-spec batch`` answers these in the same format. Who says where the prompt is
(``--prompt-field`` and the like) means records of another kind, whatever they look like.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlx_spec.cli.notes import note
from mlx_spec.errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_spec.pipeline.records import Record
    from mlx_spec.pipeline.stage import Stage


def recognised(
    stage: Stage, found: Iterator[Record], format: str, quiet: bool
) -> tuple[Stage, Iterator[Record]]:
    """The stage that the records need, and the records.

    Args:
        stage: what was asked for.
        found: the records.
        format: of the output.
        quiet: say nothing.

    Raises:
        InvalidRequest: they are of that format, and what is needed for it is not there, or the
            output is no JSON lines.
    """
    from mlx_spec.pipeline.stages.generate import GenerateText

    if not isinstance(stage, GenerateText) or stage != GenerateText():
        return stage, found
    first = next(found, None)
    if first is None:
        return stage, found
    found = itertools.chain([first], found)
    named = isinstance(first.fields.get("custom_id"), str)
    if not named or not isinstance(first.fields.get("body"), dict):
        return stage, found
    if {"prompt", "text", "messages"} & first.fields.keys():
        return stage, found
    try:
        from mlx_spec.server.api_records import ApiRecords
    except ImportError as error:
        raise InvalidRequest(
            "[batch] the records are requests of OpenAI's API (custom_id, body), which need "
            "pip install 'mlx-spec[server]'"
        ) from error
    if format != "jsonl":
        raise InvalidRequest(
            "[batch] the records are requests of OpenAI's API, whose answers are JSON lines; OUT "
            f"is {format}"
        )
    if not quiet:
        note("the records are requests of OpenAI's API (custom_id, body), and so are the answers")
    return ApiRecords(), found
