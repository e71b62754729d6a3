"""Waiting for what another thread or process does, with an end if it never does."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 300.0  # seconds; a safety net, never a measure


def eventually(true: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait until something is true that no event tells.

    Raises:
        AssertionError: it never was.
    """
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, f"it did not happen within {patience:g} s"
        time.sleep(0.005)
