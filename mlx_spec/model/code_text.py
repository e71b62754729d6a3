"""``source_of``: the text of a class or function, one thread at a time.

For a class ``inspect`` parses its whole module, and Python 3.11 counts how deep a parser stands for
all threads together: two at once may end in a ``SystemError`` (python/cpython#106905).
"""

from __future__ import annotations

import inspect
import threading
from typing import Any

_ONE = threading.Lock()
_TRIES = 5  # others' threads may be parsing too


def source_of(code: Any) -> str | None:
    """Its text; None where there is none (a builtin, or made without a source)."""
    with _ONE:
        for left in reversed(range(_TRIES)):
            try:
                return inspect.getsource(code)
            except (OSError, TypeError):
                return None
            except SystemError:
                if not left:
                    raise
    return None
