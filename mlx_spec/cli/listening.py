"""Who listens to a run from the command line: the performance log, if one was asked for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_spec.events import Listener
    from mlx_spec.pipeline.flags import Flags


def listeners(folder: str | None, flags: Flags | None, stack: ExitStack) -> list[Listener]:
    """A log under ``folder``, closed with the stack; none where no folder is given.

    ``flags`` name the models in the log's header; None where stages have different ones.
    """
    if folder is None:
        return []
    from mlx_spec.metrics import PerformanceLog

    names: dict[str, str | None] = {}
    if flags is not None:
        names = {"target": flags.target, "draft": flags.drafter or flags.head_of}
    notes = {role: name for role, name in names.items() if name is not None}
    return [stack.enter_context(PerformanceLog(folder, notes))]
