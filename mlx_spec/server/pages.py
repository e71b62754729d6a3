"""Lists as OpenAI's API gives them: some at a time, and where the rest begins."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.errors import InvalidRequest


def page(things: Seq[Mapping[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """At most ``limit`` of them, from behind the one whose id is ``after``.

    Raises:
        InvalidRequest: none has that id.
    """
    begin = 0
    if after is not None:
        places = [place for place, thing in enumerate(things) if thing["id"] == after]
        if not places:
            raise InvalidRequest(f"after is {after[:64]!r}, which is not in this list")
        begin = places[0] + 1
    shown = things[begin : begin + limit]
    return {
        "object": "list",
        "data": list(shown),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": begin + limit < len(things),
    }
